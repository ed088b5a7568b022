// Package workspaces stores the records of workspaces: delivery mode and URL, the last heartbeat, and
// the inbound secret with which the platform authenticates to a push workspace.
//
// A workspace is never deleted. Removing it leaves a tombstone, whose id cannot be registered again. An
// id cannot be taken over: once a workspace has had a token, only the bearer of a live one and the
// operator can register it or read its record. The package owns the table workspaces.
package workspaces

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/wsauth"
)

// The errors of this package. They are returned wrapped; test for them with errors.Is.
var (
	// ErrNotFound: the workspace does not exist, or has been removed.
	ErrNotFound = errors.New("workspaces: no such workspace")

	// ErrRemoved: a removed workspace tried to register.
	ErrRemoved = errors.New("workspaces: workspace was removed")

	// ErrRegistrationClosed: an unknown id tried to register while registration is closed; the operator
	// must create the workspace.
	ErrRegistrationClosed = errors.New("workspaces: registration is closed")

	// ErrInvalidMode: the delivery mode is neither push nor poll.
	ErrInvalidMode = errors.New("workspaces: invalid delivery mode")

	// ErrURLRequired: a push workspace tried to register without a URL.
	ErrURLRequired = errors.New("workspaces: push needs a url")
)

// Mode is how messages and files reach a workspace.
type Mode string

// The modes. A stored mode may also be empty: a legacy row, which is treated as Push.
const (
	Push Mode = "push" // the platform calls the workspace's URL
	Poll Mode = "poll" // the workspace polls its inbox
)

// valid reports whether m is a mode or empty.
func (m Mode) valid() bool { return m == "" || m == Push || m == Poll }

// StatusRemoved marks a tombstone.
const StatusRemoved = "removed"

// Workspace is a workspace's record.
type Workspace struct {
	ID              uuid.UUID
	Name            string
	Status          string // provisioning until the first registration or heartbeat, then online
	Mode            Mode   // as stored; see DeliveryMode
	URL             string // "" if it has none
	InboundSecret   string // "" if none was generated yet; the platform sends it to the workspace
	LastHeartbeatAt *time.Time
	CreatedAt       time.Time
}

// DeliveryMode returns the effective mode: Push for a legacy row.
func (w Workspace) DeliveryMode() Mode {
	if w.Mode == "" {
		return Push
	}
	return w.Mode
}

const (
	sqlGet = `
SELECT id, name, status, coalesce(delivery_mode, ''), coalesce(url, ''), coalesce(platform_inbound_secret, ''),
    last_heartbeat_at, created_at
FROM workspaces WHERE id = $1 AND status <> 'removed'`

	sqlLock = `
SELECT id, name, status, coalesce(delivery_mode, ''), coalesce(url, ''), coalesce(platform_inbound_secret, ''),
    last_heartbeat_at, created_at
FROM workspaces WHERE id = $1 FOR UPDATE`

	sqlCreate = `
INSERT INTO workspaces (name, delivery_mode, url, platform_inbound_secret) VALUES ($1, $2, nullif($3, ''), $4)
RETURNING id, name, status, coalesce(delivery_mode, ''), coalesce(url, ''), coalesce(platform_inbound_secret, ''),
    last_heartbeat_at, created_at`

	sqlCreateWithID = `
INSERT INTO workspaces (id, delivery_mode, registered_anonymously) VALUES ($1, 'push', $2) ON CONFLICT (id) DO NOTHING`

	sqlCreateWithIDOnBase = `INSERT INTO workspaces (id, delivery_mode) VALUES ($1, 'push') ON CONFLICT (id) DO NOTHING`

	sqlRegister = `
UPDATE workspaces SET status = 'online', agent_card = $2, delivery_mode = coalesce(nullif($3, ''), delivery_mode),
    url = coalesce(nullif($4, ''), url), platform_inbound_secret = coalesce(platform_inbound_secret, $5)
WHERE id = $1
RETURNING id, name, status, coalesce(delivery_mode, ''), coalesce(url, ''), coalesce(platform_inbound_secret, ''),
    last_heartbeat_at, created_at`

	sqlHeartbeat = `
UPDATE workspaces SET status = 'online', last_heartbeat_at = now(), last_heartbeat = $2,
    platform_inbound_secret = coalesce(platform_inbound_secret, $3)
WHERE id = $1 AND status <> 'removed' RETURNING platform_inbound_secret`

	sqlEnsureSecret = `
UPDATE workspaces SET platform_inbound_secret = coalesce(platform_inbound_secret, $2)
WHERE id = $1 AND status <> 'removed'`

	sqlRemove = `UPDATE workspaces SET status = 'removed', removed_at = coalesce(removed_at, now()) WHERE id = $1`
)

// Store reads and writes the records. It is safe for concurrent use.
type Store struct {
	db       *sql.DB
	tokens   *wsauth.Tokens
	checkURL func(string) error
	base     bool // the schema has no columns for rotation
}

// New returns the store in db. checkURL refuses URLs that the platform does not call.
func New(db *sql.DB, tokens *wsauth.Tokens, checkURL func(string) error) *Store {
	return &Store{db: db, tokens: tokens, checkURL: checkURL}
}

// Get returns a workspace. ErrNotFound if it does not exist or was removed.
func (s *Store) Get(ctx context.Context, id uuid.UUID) (Workspace, error) {
	w, err := scan(s.db.QueryRowContext(ctx, sqlGet, id))
	if err != nil {
		return Workspace{}, fmt.Errorf("workspaces: get %s: %w", id, err)
	}
	return w, nil
}

// Create creates a workspace and its first token. An empty mode is Push. The url may be empty until the
// workspace registers. Bad values are ErrInvalidMode or the error of the URL check.
func (s *Store) Create(ctx context.Context, name string, mode Mode, url string) (Workspace, string, error) {
	if !mode.valid() {
		return Workspace{}, "", ErrInvalidMode
	}
	if mode == Poll {
		url = ""
	}
	if url != "" {
		if err := s.checkURL(url); err != nil {
			return Workspace{}, "", err
		}
	}
	if mode == "" {
		mode = Push
	}
	var w Workspace
	var bearer string
	err := s.inTx(ctx, func(tx *sql.Tx) (err error) {
		if w, err = scan(tx.QueryRowContext(ctx, sqlCreate, name, mode, url, newSecret())); err != nil {
			return err
		}
		bearer, _, err = s.tokens.Issue(ctx, tx, w.ID)
		return err
	})
	if err != nil {
		return Workspace{}, "", fmt.Errorf("workspaces: create: %w", err)
	}
	return w, bearer, nil
}

// Mint issues another token for a workspace. ErrNotFound; wsauth.ErrTooManyTokens if it has
// wsauth.MaxTokens live ones.
func (s *Store) Mint(ctx context.Context, id uuid.UUID) (bearer string, token wsauth.Token, err error) {
	err = s.inTx(ctx, func(tx *sql.Tx) error {
		w, err := scan(tx.QueryRowContext(ctx, sqlLock, id))
		if err != nil {
			return err
		}
		if w.Status == StatusRemoved {
			return ErrNotFound
		}
		live, _, err := s.tokens.History(ctx, tx, id)
		if err != nil {
			return err
		}
		if live >= wsauth.MaxTokens {
			return wsauth.ErrTooManyTokens
		}
		bearer, token, err = s.tokens.Issue(ctx, tx, id)
		return err
	})
	if err != nil {
		return "", wsauth.Token{}, fmt.Errorf("workspaces: mint token for %s: %w", id, err)
	}
	return bearer, token, nil
}

// Heartbeat stores the time and the report of a heartbeat, and returns the workspace's inbound secret. own says that
// the workspace itself sent it, and not the operator: then the workspace has the secret from now on. ErrNotFound.
func (s *Store) Heartbeat(ctx context.Context, id uuid.UUID, report json.RawMessage, own bool) (secret string, err error) {
	statement := sqlHeartbeat
	if own && !s.base {
		statement = sqlHeartbeatDelivers
	}
	err = s.db.QueryRowContext(ctx, statement, id, string(report), newSecret()).Scan(&secret)
	if err != nil {
		return "", fmt.Errorf("workspaces: heartbeat of %s: %w", id, notFound(err))
	}
	return secret, nil
}

// EnsureSecret generates the inbound secret of a workspace that has none. The workspace receives it
// with its next heartbeat.
func (s *Store) EnsureSecret(ctx context.Context, id uuid.UUID) error {
	if _, err := s.db.ExecContext(ctx, sqlEnsureSecret, id, newSecret()); err != nil {
		return fmt.Errorf("workspaces: generate inbound secret of %s: %w", id, err)
	}
	return nil
}

// Remove turns a workspace into a tombstone. Its tokens stop working at once; its files expire as they
// would have. Removing it again succeeds. ErrNotFound if it never existed.
func (s *Store) Remove(ctx context.Context, id uuid.UUID) error {
	result, err := s.db.ExecContext(ctx, sqlRemove, id)
	if err != nil {
		return fmt.Errorf("workspaces: remove %s: %w", id, err)
	}
	if n, _ := result.RowsAffected(); n == 0 {
		return fmt.Errorf("workspaces: remove %s: %w", id, ErrNotFound)
	}
	return nil
}

func (s *Store) inTx(ctx context.Context, do func(*sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() // after a commit it does nothing
	if err := do(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

func scan(row interface{ Scan(...any) error }) (Workspace, error) {
	var w Workspace
	err := row.Scan(&w.ID, &w.Name, &w.Status, &w.Mode, &w.URL, &w.InboundSecret, &w.LastHeartbeatAt, &w.CreatedAt)
	return w, notFound(err)
}

func notFound(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}

// newSecret returns an inbound secret of 256 random bits.
func newSecret() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}
