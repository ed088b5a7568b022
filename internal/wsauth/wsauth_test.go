package wsauth_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/wsauth"
)

func TestIssue_TokenIs256RandomBitsBehindThePrefix(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace := f.workspace(t)
	first := map[byte]bool{}
	for range 32 {
		bearer, token := f.issue(t, workspace)
		encoded, ok := strings.CutPrefix(bearer, "mol_ws_")
		secret, err := base64.RawURLEncoding.DecodeString(encoded)
		if !ok || err != nil || len(secret) != 32 {
			t.Fatalf("token %q: not mol_ws_ and 32 bytes in base64url", bearer)
		}
		if token.Prefix != bearer[:13] || token.ID == uuid.Nil || token.CreatedAt.IsZero() || token.LastUsedAt != nil {
			t.Errorf("token %+v of %q", token, bearer)
		}
		first[secret[0]] = true
	}
	if len(first) < 8 {
		t.Errorf("32 tokens begin with only %d different bytes", len(first))
	}
}

func TestIssue_StoresOnlyTheHash(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	bearer, _ := f.issue(t, f.workspace(t))
	var row string
	if err := f.db.QueryRowContext(t.Context(), "SELECT t::text FROM workspace_tokens t").Scan(&row); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(bearer))
	if !strings.Contains(row, hex.EncodeToString(sum[:])) {
		t.Errorf("the row has no SHA-256 of the token: %s", row)
	}
	if strings.Contains(row, bearer[:14]) || strings.Contains(row, bearer[13:20]) {
		t.Errorf("the row contains more of the token %q than its prefix: %s", bearer, row)
	}
}

func TestAuthenticate_AcceptsOwnTokenAndOperator(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace := f.workspace(t)
	for range 2 {
		bearer, token := f.issue(t, workspace)
		if got, want := f.mustAuthenticate(t, workspace, bearer), (wsauth.Caller{Workspace: workspace, TokenID: token.ID}); got != want {
			t.Errorf("caller %+v, want %+v", got, want)
		}
	}
	if got := f.mustAuthenticate(t, workspace, adminToken); got != (wsauth.Caller{Admin: true}) {
		t.Errorf("caller %+v, want the operator", got)
	}
}

func TestAuthenticate_RefusesOthers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace, other, removed := f.workspace(t), f.workspace(t), f.workspace(t)
	own, _ := f.issue(t, workspace)
	others, _ := f.issue(t, other)
	dead, _ := f.issue(t, removed)
	f.exec(t, "UPDATE workspaces SET status = 'removed' WHERE id = $1", removed)
	revoked, token := f.issue(t, workspace)
	if err := f.Revoke(t.Context(), workspace, token.ID); err != nil {
		t.Fatal(err)
	}
	unknown := "mol_ws_" + base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	hash := sha256.Sum256([]byte(own))
	for name, test := range map[string]struct {
		workspace uuid.UUID
		bearer    string
	}{
		"missing":                        {workspace, ""},
		"malformed":                      {workspace, "secret"},
		"prefix only":                    {workspace, "mol_ws_"},
		"cut":                            {workspace, own[:len(own)-1]},
		"longer":                         {workspace, own + "A"},
		"in capitals":                    {workspace, strings.ToUpper(own)},
		"what is shown of it":            {workspace, own[:13]},
		"what is stored of it":           {workspace, hex.EncodeToString(hash[:])},
		"unknown":                        {workspace, unknown},
		"revoked":                        {workspace, revoked},
		"another workspace's":            {workspace, others},
		"of a removed workspace":         {removed, dead},
		"of a removed one, on another":   {workspace, dead},
		"own, on an unknown workspace":   {uuid.New(), own},
		"the operator's, nearly":         {workspace, adminToken[1:]},
		"the operator's, with NUL after": {workspace, adminToken + "\x00"},
	} {
		caller, err := f.Authenticate(t.Context(), test.workspace, test.bearer)
		if !errors.Is(err, wsauth.ErrUnauthorized) || caller != (wsauth.Caller{}) {
			t.Errorf("%s: %+v, %v, want ErrUnauthorized", name, caller, err)
		}
	}
}

func TestAuthenticate_RefusesRevokedTokensAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace := f.workspace(t)
	bearer, token := f.issue(t, workspace)
	spare, _ := f.issue(t, workspace)
	f.mustAuthenticate(t, workspace, bearer)
	if err := f.Revoke(t.Context(), workspace, token.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Authenticate(t.Context(), workspace, bearer); !errors.Is(err, wsauth.ErrUnauthorized) {
		t.Errorf("a revoked token: %v, want ErrUnauthorized", err)
	}
	f.mustAuthenticate(t, workspace, spare)
	f.exec(t, "UPDATE workspaces SET status = 'removed'")
	if _, err := f.Authenticate(t.Context(), workspace, spare); !errors.Is(err, wsauth.ErrUnauthorized) {
		t.Errorf("a removed workspace's token: %v, want ErrUnauthorized", err)
	}
}

func TestAuthenticate_FailsClosedWhenTheLookupFails(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace := f.workspace(t)
	bearer, _ := f.issue(t, workspace)
	check := func(name string, ctx context.Context) {
		caller, err := f.Authenticate(ctx, workspace, bearer)
		if !errors.Is(err, wsauth.ErrUnavailable) || errors.Is(err, wsauth.ErrUnauthorized) || caller != (wsauth.Caller{}) {
			t.Errorf("%s: %+v, %v, want ErrUnavailable", name, caller, err)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	check("cancelled", cancelled)
	f.exec(t, "ALTER TABLE workspace_tokens RENAME TO gone")
	check("no table", t.Context())
	f.db.Close()
	check("no database", t.Context())
	if _, err := f.Authenticate(t.Context(), workspace, "malformed"); !errors.Is(err, wsauth.ErrUnauthorized) {
		t.Errorf("malformed, no database: %v, want ErrUnauthorized", err)
	}
}

// Without an admin token, callers without a token must not be the operator.
func TestIsAdmin_RefusesTheEmptyToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, configured := range []string{"", adminToken} {
		tokens := wsauth.New(f.db, configured, slog.New(slog.DiscardHandler))
		if tokens.IsAdmin("") {
			t.Errorf("admin token %q: an empty bearer is the operator", configured)
		}
		if _, err := tokens.Authenticate(t.Context(), f.workspace(t), ""); !errors.Is(err, wsauth.ErrUnauthorized) {
			t.Errorf("admin token %q: an empty bearer: %v, want ErrUnauthorized", configured, err)
		}
		if got := tokens.IsAdmin(adminToken); got != (configured != "") {
			t.Errorf("admin token %q: IsAdmin(%q) is %v", configured, adminToken, got)
		}
	}
}

func TestList_ShowsLiveTokensOldestFirst(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace, other := f.workspace(t), f.workspace(t)
	if list, err := f.List(t.Context(), workspace); err != nil || list == nil || len(list) > 0 {
		t.Errorf("no tokens: %v, %v, want an empty list", list, err)
	}
	_, first := f.issue(t, workspace)
	_, revoked := f.issue(t, workspace)
	_, last := f.issue(t, workspace)
	f.issue(t, other)
	if err := f.Revoke(t.Context(), workspace, revoked.ID); err != nil {
		t.Fatal(err)
	}
	list, err := f.List(t.Context(), workspace)
	if err != nil || len(list) != 2 || list[0].ID != first.ID || list[1].ID != last.ID || list[0].Prefix != first.Prefix {
		t.Errorf("list %+v, %v", list, err)
	}
	f.db.Close()
	if _, err := f.List(t.Context(), workspace); err == nil {
		t.Error("listed without a database")
	}
}

func TestRevoke_OnlyOwnLiveTokens(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace, other := f.workspace(t), f.workspace(t)
	bearer, token := f.issue(t, workspace)
	for name, revoke := range map[string][2]uuid.UUID{
		"another workspace": {other, token.ID}, "unknown token": {workspace, uuid.New()},
	} {
		if err := f.Revoke(t.Context(), revoke[0], revoke[1]); !errors.Is(err, wsauth.ErrTokenNotFound) {
			t.Errorf("%s: %v, want ErrTokenNotFound", name, err)
		}
	}
	f.mustAuthenticate(t, workspace, bearer)
	if err := f.Revoke(t.Context(), workspace, token.ID); err != nil {
		t.Fatal(err)
	}
	if err := f.Revoke(t.Context(), workspace, token.ID); !errors.Is(err, wsauth.ErrTokenNotFound) {
		t.Errorf("again: %v, want ErrTokenNotFound", err)
	}
	f.db.Close()
	if err := f.Revoke(t.Context(), workspace, token.ID); err == nil || errors.Is(err, wsauth.ErrTokenNotFound) {
		t.Errorf("without a database: %v", err)
	}
}

func TestHistory_CountsLiveAndTotal(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace := f.workspace(t)
	want := func(wantLive, wantEver int) {
		t.Helper()
		tx, err := f.db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback() // it only reads
		if live, ever, err := f.History(t.Context(), tx, workspace); err != nil || live != wantLive || ever != wantEver {
			t.Errorf("%d live, %d in total, %v, want %d and %d", live, ever, err, wantLive, wantEver)
		}
	}
	f.issue(t, f.workspace(t))
	want(0, 0)
	_, token := f.issue(t, workspace)
	f.issue(t, workspace)
	want(2, 2)
	if err := f.Revoke(t.Context(), workspace, token.ID); err != nil {
		t.Fatal(err)
	}
	want(1, 2)
}

// AuthenticateIn must work when the pool has no second connection.
func TestAuthenticateIn_UsesTheTransaction(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.db.SetMaxOpenConns(1)
	workspace := f.workspace(t)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	tx, err := f.db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() // nothing of it is needed
	bearer, token, err := f.Issue(ctx, tx, workspace)
	if err != nil {
		t.Fatal(err)
	}
	caller, err := f.AuthenticateIn(ctx, tx, workspace, bearer)
	if err != nil || caller.TokenID != token.ID {
		t.Errorf("%+v, %v", caller, err)
	}
}

func TestRun_RecordsUseAtMostOnceAMinute(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace := f.workspace(t)
	bearer, token := f.issue(t, workspace)
	marker, markerToken := f.issue(t, workspace)
	// use uses the token and returns when Run has processed it: Run works in order, so that is when a
	// later use of another token has been recorded.
	use := func() (ago time.Duration, ok bool) {
		t.Helper()
		f.mustAuthenticate(t, workspace, bearer)
		f.exec(t, "UPDATE workspace_tokens SET last_used_at = NULL WHERE id = $1", markerToken.ID)
		f.mustAuthenticate(t, workspace, marker)
		deadline := time.Now().Add(testTimeout)
		for {
			if _, ok := f.lastUsed(t, markerToken.ID); ok {
				return f.lastUsed(t, token.ID)
			}
			if time.Now().After(deadline) {
				t.Fatal("no use was recorded")
			}
		}
	}
	setAgo := func(seconds int) {
		f.exec(t, "UPDATE workspace_tokens SET last_used_at = now() - $2 * interval '1 second' WHERE id = $1", token.ID, seconds)
	}
	f.mustAuthenticate(t, workspace, bearer) // it waits in the queue, and another replica records a use before Run does:
	setAgo(30)
	f.run(t)
	if ago, _ := use(); ago < 30*time.Second {
		t.Errorf("30 s after a use that another replica recorded, one is recorded again, %s ago", ago)
	}
	if ago, _ := use(); ago < 30*time.Second {
		t.Errorf("30 s after a use, one is recorded again, %s ago", ago)
	}
	setAgo(61)
	if ago, _ := use(); ago > 30*time.Second {
		t.Errorf("61 s after a use, none is recorded: the last one is %s ago", ago)
	}
}

// Run is not running, so the queue is full: requests must not block.
func TestAuthenticate_DoesNotWaitForUseToBeRecorded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	workspace := f.workspace(t)
	bearer, _ := f.issue(t, workspace)
	ended := make(chan error, 1)
	go func() {
		var err error
		for range 300 {
			_, e := f.Authenticate(t.Context(), workspace, bearer)
			err = errors.Join(err, e)
		}
		ended <- err
	}()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(testTimeout):
		t.Error("requests wait for the recording of uses")
	}
}

func TestRun_ContinuesAfterAFailureAndLogsNoToken(t *testing.T) {
	t.Parallel()
	lines := make(lineChannel, 10)
	f := newFixtureLogging(t, lines)
	workspace := f.workspace(t)
	bearer, token := f.issue(t, workspace)
	for range 2 {
		f.mustAuthenticate(t, workspace, bearer)
	}
	f.exec(t, "ALTER TABLE workspace_tokens RENAME COLUMN last_used_at TO gone")
	f.run(t)
	for range 2 {
		select {
		case line := <-lines:
			if !strings.Contains(line, token.ID.String()) || strings.Contains(line, bearer) {
				t.Errorf("log line %s: want the token's id, not the token", line)
			}
		case <-time.After(testTimeout):
			t.Fatal("a failure to record a use was not logged")
		}
	}
}

type lineChannel chan string

func (c lineChannel) Write(p []byte) (int, error) {
	c <- string(bytes.Clone(p))
	return len(p), nil
}
