package wsauth_test

import (
	"context"
	"database/sql"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/wsauth"
)

const adminToken = "the-operator's-token"

// testTimeout bounds every wait of a test.
const testTimeout = 20 * time.Second

func TestMain(m *testing.M) {
	gin.SetMode(gin.TestMode)
	pgtest.Main(m)
}

// A fixture has tokens in a database of its own.
type fixture struct {
	*wsauth.Tokens
	db *sql.DB
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	return newFixtureLogging(t, io.Discard)
}

func newFixtureLogging(t *testing.T, w io.Writer) fixture {
	t.Helper()
	db := pgtest.Open(t, pgtest.New(t))
	return fixture{wsauth.New(db, adminToken, slog.New(slog.NewJSONHandler(w, nil))), db}
}

// workspace creates a workspace without tokens.
func (f fixture) workspace(t *testing.T) uuid.UUID {
	t.Helper()
	var id uuid.UUID
	if err := f.db.QueryRowContext(t.Context(), "INSERT INTO workspaces DEFAULT VALUES RETURNING id").Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

func (f fixture) issue(t *testing.T, workspace uuid.UUID) (string, wsauth.Token) {
	t.Helper()
	tx, err := f.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() // after a commit it does nothing
	bearer, token, err := f.Issue(t.Context(), tx, workspace)
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	return bearer, token
}

func (f fixture) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	if _, err := f.db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

func (f fixture) mustAuthenticate(t *testing.T, workspace uuid.UUID, bearer string) wsauth.Caller {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	caller, err := f.Authenticate(ctx, workspace, bearer)
	if err != nil {
		t.Fatal(err)
	}
	return caller
}

// lastUsed returns the recorded time since the last use of the token; ok is false without a record.
func (f fixture) lastUsed(t *testing.T, id uuid.UUID) (ago time.Duration, ok bool) {
	t.Helper()
	var seconds sql.NullFloat64
	err := f.db.QueryRowContext(t.Context(),
		"SELECT extract(epoch FROM now() - last_used_at) FROM workspace_tokens WHERE id = $1", id).Scan(&seconds)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds.Float64 * float64(time.Second)), seconds.Valid
}

// run runs f.Run until the test ends.
func (f fixture) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() { defer close(ended); f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(testTimeout):
			t.Error("Run did not end with its context")
		}
	})
}
