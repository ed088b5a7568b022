package workspaces_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

const (
	adminToken = "the-operator's-token"
	goodURL    = "https://agent.example:8443/base"
	otherURL   = "http://agent.example"
	badURL     = "http://forbidden.example"
)

var errBadURL = errors.New("url refused")

func TestMain(m *testing.M) { pgtest.Main(m) }

// A fixture is a store on a database of its own, whose URL check refuses URLs that contain "forbidden".
type fixture struct {
	*workspaces.Store
	tokens *wsauth.Tokens
	db     *sql.DB
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	db := pgtest.Open(t, pgtest.New(t))
	tokens := wsauth.New(db, adminToken, slog.New(slog.DiscardHandler))
	return fixture{workspaces.New(db, tokens, func(url string) error {
		if strings.Contains(url, "forbidden") {
			return errBadURL
		}
		return nil
	}), tokens, db}
}

// legacy inserts a row as it was before tokens and delivery modes.
func (f fixture) legacy(t *testing.T) uuid.UUID {
	t.Helper()
	var id uuid.UUID
	if err := f.db.QueryRowContext(t.Context(), "INSERT INTO workspaces (status) VALUES ('online') RETURNING id").Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

func (f fixture) create(t *testing.T, mode workspaces.Mode, url string) (workspaces.Workspace, string) {
	t.Helper()
	w, bearer, err := f.Create(t.Context(), "laptop", mode, url)
	if err != nil {
		t.Fatal(err)
	}
	return w, bearer
}

func (f fixture) get(t *testing.T, id uuid.UUID) workspaces.Workspace {
	t.Helper()
	w, err := f.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (f fixture) remove(t *testing.T, id uuid.UUID) {
	t.Helper()
	if err := f.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// revokeAll revokes every token of the workspace.
func (f fixture) revokeAll(t *testing.T, id uuid.UUID) {
	t.Helper()
	list, err := f.tokens.List(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range list {
		if err := f.tokens.Revoke(t.Context(), id, token.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// works reports whether the token is valid for the workspace.
func (f fixture) works(t *testing.T, id uuid.UUID, bearer string) bool {
	t.Helper()
	_, err := f.tokens.Authenticate(t.Context(), id, bearer)
	if err != nil && !errors.Is(err, wsauth.ErrUnauthorized) {
		t.Fatal(err)
	}
	return err == nil
}

// registration returns the registration of a poll workspace.
func registration(id uuid.UUID, bearer string) workspaces.Registration {
	return workspaces.Registration{ID: id, AgentCard: json.RawMessage(`{"name":"agent"}`), Mode: workspaces.Poll, Bearer: bearer}
}
