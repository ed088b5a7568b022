// Package wsauth authenticates callers: a workspace by one of its tokens, the operator by the admin
// token of the platform.
//
// A token is a recognizable prefix and 256 random bits. Only its SHA-256 is stored: a leaked table
// contains no usable token, and a lookup by hash has no timing that depends on the guess. There is no
// cache: a revoked token, and every token of a removed workspace, stops working with the next request.
// Authentication fails closed: if a token cannot be looked up, the caller is refused.
//
// The package owns the table workspace_tokens, and the gin middleware that guards the routes.
package wsauth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"
)

// The errors of this package. They are returned wrapped; test for them with errors.Is.
var (
	// ErrUnauthorized: the token is missing, malformed, unknown, revoked, of another workspace, or of a
	// removed workspace. The caller cannot distinguish these cases.
	ErrUnauthorized = errors.New("wsauth: unauthorized")

	// ErrUnavailable: the token could not be looked up.
	ErrUnavailable = errors.New("wsauth: token lookup failed")

	// ErrInvalidWorkspaceID: the workspace id in the path is not a UUID.
	ErrInvalidWorkspaceID = errors.New("wsauth: invalid workspace ID")

	// ErrTooManyTokens: the workspace has MaxTokens live tokens.
	ErrTooManyTokens = errors.New("wsauth: too many tokens")

	// ErrTokenNotFound: the workspace has no such token, or it is revoked already.
	ErrTokenNotFound = errors.New("wsauth: no such token")
)

const (
	// tokenPrefix lets people and secret scanners recognize a token.
	tokenPrefix = "mol_ws_"

	tokenBytes = 32

	// shownPrefixChars is how many characters of a token a list shows: enough to identify a token, with
	// 220 bits still secret.
	shownPrefixChars = len(tokenPrefix) + 6

	// touchQueueSize is how many uses may wait to be recorded. More are dropped, because requests must
	// not wait for it.
	touchQueueSize = 256

	touchTimeout = 5 * time.Second

	// lookupTimeout includes the wait for a free connection. A client gets a 503 rather than no answer.
	lookupTimeout = 5 * time.Second

	// maxUnseenLookups bounds the concurrent look-ups of tokens that were not valid recently, and so the connections
	// that a flood of invented tokens takes.
	maxUnseenLookups = 4
)

const (
	sqlInsert = `
INSERT INTO workspace_tokens (workspace_id, token_hash, prefix) VALUES ($1, $2, $3)
RETURNING id, created_at`

	sqlIdentify = `
SELECT t.workspace_id, t.id, t.last_used_at IS NULL OR t.last_used_at < now() - interval '1 minute'
FROM workspace_tokens t JOIN workspaces w ON w.id = t.workspace_id
WHERE t.token_hash = $1 AND t.revoked_at IS NULL AND w.status <> 'removed'`

	sqlTouch = `
UPDATE workspace_tokens SET last_used_at = now()
WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')`

	sqlHistory = `
SELECT count(*) FILTER (WHERE revoked_at IS NULL), count(*)
FROM workspace_tokens WHERE workspace_id = $1`

	sqlList = `
SELECT id, prefix, created_at, last_used_at FROM workspace_tokens
WHERE workspace_id = $1 AND revoked_at IS NULL ORDER BY created_at, id`

	sqlRevoke = `
UPDATE workspace_tokens SET revoked_at = now()
WHERE id = $1 AND workspace_id = $2 AND revoked_at IS NULL`
)

// MaxTokens is how many live tokens a workspace may have.
const MaxTokens = 100

// A Caller is the sender of a request: the operator, or the bearer of a workspace's token.
type Caller struct {
	Admin     bool
	Workspace uuid.UUID // zero for the operator
	TokenID   uuid.UUID // zero for the operator
}

// Token is the public part of an issued token.
type Token struct {
	ID         uuid.UUID  `json:"id"`
	Prefix     string     `json:"prefix"`
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
}

// Tokens issues and checks tokens. It is safe for concurrent use.
type Tokens struct {
	db      *sql.DB
	admin   [sha256.Size]byte
	touches chan uuid.UUID
	log     *slog.Logger
	seen    seen
	unseen  *semaphore.Weighted // look-ups of tokens that are not in seen
}

// New returns the tokens in db. If adminToken is empty, no caller is the operator.
func New(db *sql.DB, adminToken string, log *slog.Logger) *Tokens {
	return &Tokens{
		db: db, admin: sha256.Sum256([]byte(adminToken)), touches: make(chan uuid.UUID, touchQueueSize), log: log,
		unseen: semaphore.NewWeighted(maxUnseenLookups),
	}
}

// IsAdmin reports whether the bearer token is the operator's, in constant time. The empty token never
// is, even if no admin token is set.
func (t *Tokens) IsAdmin(bearer string) bool {
	sum := sha256.Sum256([]byte(bearer))
	return bearer != "" && subtle.ConstantTimeCompare(sum[:], t.admin[:]) == 1
}

// Authenticate returns the caller that presents the bearer token, if it may act on the workspace: with a
// token of the workspace, or with the operator's. ErrUnauthorized for any other token, ErrUnavailable
// if the lookup fails.
func (t *Tokens) Authenticate(ctx context.Context, workspace uuid.UUID, bearer string) (Caller, error) {
	return only(workspace)(t.Identify(ctx, bearer))
}

// AuthenticateIn is Authenticate within tx, for a caller that holds a transaction and must not wait for
// a second connection.
func (t *Tokens) AuthenticateIn(ctx context.Context, tx *sql.Tx, workspace uuid.UUID, bearer string) (Caller, error) {
	return only(workspace)(t.identify(ctx, tx, bearer))
}

// only returns a function that refuses a caller that may not act on the workspace.
func only(workspace uuid.UUID) func(Caller, error) (Caller, error) {
	return func(caller Caller, err error) (Caller, error) {
		switch {
		case err != nil:
			return Caller{}, fmt.Errorf("wsauth: authenticate for workspace %s: %w", workspace, err)
		case !caller.Admin && caller.Workspace != workspace:
			return Caller{}, ErrUnauthorized
		}
		return caller, nil
	}
}

// Identify returns the caller that presents the bearer token, whatever workspace it may act on. ErrUnauthorized if the
// token is not valid, ErrUnavailable if the lookup fails. Tokens that were not valid recently wait for each other, so
// that however many are invented, tokens in use are looked up at once.
func (t *Tokens) Identify(ctx context.Context, bearer string) (Caller, error) {
	if t.IsAdmin(bearer) || !wellFormed(bearer) || t.seen.has(sha256.Sum256([]byte(bearer))) {
		return t.identify(ctx, t.db, bearer)
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if err := t.unseen.Acquire(ctx, 1); err != nil {
		return Caller{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer t.unseen.Release(1)
	return t.identify(ctx, t.db, bearer)
}

type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func (t *Tokens) identify(ctx context.Context, q querier, bearer string) (Caller, error) {
	if t.IsAdmin(bearer) {
		return Caller{Admin: true}, nil
	}
	if !wellFormed(bearer) {
		return Caller{}, ErrUnauthorized
	}
	var caller Caller
	hash := sha256.Sum256([]byte(bearer))
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var stale bool
	err := q.QueryRowContext(ctx, sqlIdentify, hash[:]).Scan(&caller.Workspace, &caller.TokenID, &stale)
	if errors.Is(err, sql.ErrNoRows) {
		t.seen.remove(hash)
		return Caller{}, ErrUnauthorized
	}
	if err != nil {
		return Caller{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	t.seen.add(hash)
	if stale {
		select {
		case t.touches <- caller.TokenID:
		default:
		}
	}
	return caller, nil
}

// Run records when tokens were last used, until ctx is done. Requests neither wait for it nor fail with
// it.
func (t *Tokens) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-t.touches:
			touch, cancel := context.WithTimeout(ctx, touchTimeout)
			if _, err := t.db.ExecContext(touch, sqlTouch, id); err != nil && ctx.Err() == nil {
				t.log.WarnContext(ctx, "recording token use failed; last_used_at may be out of date", "token_id", id, "error", err)
			}
			cancel()
		}
	}
}

// Issue creates a token for the workspace within tx and returns it. Only its hash is stored, so it cannot
// be shown again.
func (t *Tokens) Issue(ctx context.Context, tx *sql.Tx, workspace uuid.UUID) (string, Token, error) {
	secret := make([]byte, tokenBytes)
	rand.Read(secret) // never fails
	bearer := tokenPrefix + base64.RawURLEncoding.EncodeToString(secret)
	hash := sha256.Sum256([]byte(bearer))
	token := Token{Prefix: bearer[:shownPrefixChars]}
	if err := tx.QueryRowContext(ctx, sqlInsert, workspace, hash[:], token.Prefix).Scan(&token.ID, &token.CreatedAt); err != nil {
		return "", Token{}, fmt.Errorf("wsauth: issue token for workspace %s: %w", workspace, err)
	}
	t.seen.add(hash)
	return bearer, token, nil
}

// History returns how many tokens of the workspace are live, and how many were ever issued. ErrUnavailable
// if the lookup fails.
func (t *Tokens) History(ctx context.Context, tx *sql.Tx, workspace uuid.UUID) (live, total int, err error) {
	if err := tx.QueryRowContext(ctx, sqlHistory, workspace).Scan(&live, &total); err != nil {
		return 0, 0, fmt.Errorf("%w: count tokens of workspace %s: %w", ErrUnavailable, workspace, err)
	}
	return live, total, nil
}

// List returns the live tokens of the workspace, oldest first, never nil.
func (t *Tokens) List(ctx context.Context, workspace uuid.UUID) ([]Token, error) {
	rows, err := t.db.QueryContext(ctx, sqlList, workspace)
	if err != nil {
		return nil, fmt.Errorf("wsauth: list tokens of workspace %s: %w", workspace, err)
	}
	defer rows.Close()
	tokens := []Token{}
	for rows.Next() {
		var token Token
		if err := rows.Scan(&token.ID, &token.Prefix, &token.CreatedAt, &token.LastUsedAt); err != nil {
			return nil, fmt.Errorf("wsauth: scan token of workspace %s: %w", workspace, err)
		}
		tokens = append(tokens, token)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("wsauth: list tokens of workspace %s: %w", workspace, err)
	}
	return tokens, nil
}

// Revoke revokes a token of the workspace with immediate effect. ErrTokenNotFound.
func (t *Tokens) Revoke(ctx context.Context, workspace, id uuid.UUID) error {
	result, err := t.db.ExecContext(ctx, sqlRevoke, id, workspace)
	if err != nil {
		return fmt.Errorf("wsauth: revoke token %s: %w", id, err)
	}
	if n, _ := result.RowsAffected(); n == 0 {
		return ErrTokenNotFound
	}
	return nil
}

// wellFormed reports whether bearer has the form of a token. Other strings are refused without a lookup.
func wellFormed(bearer string) bool {
	encoded, ok := strings.CutPrefix(bearer, tokenPrefix)
	// The length is checked because the decoder skips line breaks.
	if !ok || len(encoded) != base64.RawURLEncoding.EncodedLen(tokenBytes) {
		return false
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	return err == nil && len(secret) == tokenBytes
}

// Bearer returns the token of an Authorization header, or "" if it has none. The scheme
// is not case-sensitive (RFC 9110 section 11.1).
func Bearer(authorization string) string {
	scheme, token, ok := strings.Cut(authorization, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}
