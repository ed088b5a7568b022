// Package workspaces keeps the records of workspaces: how each is reached, whether it is
// alive, and the secret by which it knows the platform.
//
// A workspace is never deleted. Removing it leaves a tombstone, whose id cannot be taken
// again. Registering promises that nobody takes over an id: whoever cannot prove to be the
// workspace, or the operator, gets nothing about one that ever had a token.
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
	// ErrNotFound: there is no such workspace, or it has been removed.
	ErrNotFound = errors.New("workspaces: no such workspace")

	// ErrRemoved: a workspace that has been removed wants to register.
	ErrRemoved = errors.New("workspaces: workspace was removed")

	// ErrRegistrationClosed: an unknown id wants to register, and only the operator may let
	// it in.
	ErrRegistrationClosed = errors.New("workspaces: registration is closed")

	// ErrInvalidMode: a delivery mode other than push and poll.
	ErrInvalidMode = errors.New("workspaces: invalid delivery mode")

	// ErrURLRequired: a push workspace wants to register without saying where it is.
	ErrURLRequired = errors.New("workspaces: push needs a url")
)

// Mode is how messages and files reach a workspace.
type Mode string

// The modes. A stored mode may also be empty: a legacy row, which is treated as Push.
const (
	Push Mode = "push" // the platform calls the workspace's url
	Poll Mode = "poll" // the workspace asks its inbox
)

// valid reports whether m is a mode, or empty for "not said".
func (m Mode) valid() bool { return m == "" || m == Push || m == Poll }

// StatusRemoved marks a tombstone.
const StatusRemoved = "removed"

// Workspace is a workspace's record.
type Workspace struct {
	ID              uuid.UUID
	Name            string
	Status          string // provisioning until it registers or is heard of, then online
	Mode            Mode   // as stored; see DeliveryMode
	URL             string // "" if it has none
	InboundSecret   string // "" if none was made yet; the platform shows it to the workspace
	LastHeartbeatAt *time.Time
	CreatedAt       time.Time
}

// DeliveryMode is the mode that counts: a legacy row is push.
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

	sqlList = `
SELECT id, name, status, coalesce(delivery_mode, ''), coalesce(url, ''), coalesce(platform_inbound_secret, ''),
    last_heartbeat_at, created_at
FROM workspaces WHERE status <> 'removed' ORDER BY created_at DESC, id DESC`

	sqlCreate = `
INSERT INTO workspaces (name, delivery_mode, url, platform_inbound_secret) VALUES ($1, $2, nullif($3, ''), $4)
RETURNING id, name, status, coalesce(delivery_mode, ''), coalesce(url, ''), coalesce(platform_inbound_secret, ''),
    last_heartbeat_at, created_at`

	sqlCreateWithID = `INSERT INTO workspaces (id, delivery_mode) VALUES ($1, 'push') ON CONFLICT (id) DO NOTHING`

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

// Store keeps the records. It is safe for concurrent use.
type Store struct {
	db       *sql.DB
	tokens   *wsauth.Tokens
	checkURL func(string) error
}

// New returns the records in db. checkURL refuses urls that the platform would not call.
func New(db *sql.DB, tokens *wsauth.Tokens, checkURL func(string) error) *Store {
	return &Store{db: db, tokens: tokens, checkURL: checkURL}
}

// Get returns a workspace. ErrNotFound, also for a removed one.
func (s *Store) Get(ctx context.Context, id uuid.UUID) (Workspace, error) {
	w, err := scan(s.db.QueryRowContext(ctx, sqlGet, id))
	if err != nil {
		return Workspace{}, fmt.Errorf("workspaces: get %s: %w", id, err)
	}
	return w, nil
}

// List returns the workspaces that are not removed, newest first, never nil.
func (s *Store) List(ctx context.Context) ([]Workspace, error) {
	rows, err := s.db.QueryContext(ctx, sqlList)
	if err != nil {
		return nil, fmt.Errorf("workspaces: list: %w", err)
	}
	defer rows.Close()
	list := []Workspace{}
	for rows.Next() {
		w, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("workspaces: list: %w", err)
		}
		list = append(list, w)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("workspaces: list: %w", err)
	}
	return list, nil
}

// Create makes a workspace and its first token. An empty mode is Push; url may be empty,
// the workspace then brings it when it registers. ErrInvalidMode, or the error of the
// url check.
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

// Mint makes a further token for a workspace. ErrNotFound, wsauth.ErrTooManyTokens.
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

// Heartbeat notes that a workspace is alive and what it reports, and returns its inbound
// secret. ErrNotFound.
func (s *Store) Heartbeat(ctx context.Context, id uuid.UUID, report json.RawMessage) (secret string, err error) {
	err = s.db.QueryRowContext(ctx, sqlHeartbeat, id, string(report), newSecret()).Scan(&secret)
	if err != nil {
		return "", fmt.Errorf("workspaces: heartbeat of %s: %w", id, notFound(err))
	}
	return secret, nil
}

// EnsureSecret makes the inbound secret of a workspace that has none; it learns of it with
// its next heartbeat.
func (s *Store) EnsureSecret(ctx context.Context, id uuid.UUID) error {
	if _, err := s.db.ExecContext(ctx, sqlEnsureSecret, id, newSecret()); err != nil {
		return fmt.Errorf("workspaces: make inbound secret of %s: %w", id, err)
	}
	return nil
}

// Remove leaves a tombstone. The workspace's tokens stop working at once; its files expire
// by their own clock. Removing again succeeds. ErrNotFound if there never was one.
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
	defer tx.Rollback() //nolint:errcheck // after a commit it does nothing
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

// newSecret makes an inbound secret of 256 random bits.
func newSecret() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}
