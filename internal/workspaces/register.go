package workspaces

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// A Registration is what a workspace reports when it starts.
type Registration struct {
	ID        uuid.UUID
	AgentCard json.RawMessage // a JSON object
	Mode      Mode            // empty keeps the stored one, or is Push for a new workspace
	URL       string          // required for Push, ignored for Poll
	Bearer    string          // the token that the caller presents; may be empty
	Open      bool            // an unknown id may register without a token
}

// Register stores a registration. If the workspace has no live token, Register issues one and returns
// it; otherwise the returned token is empty.
//
// A workspace that ever had a token is changed only for the bearer of a live one or of the operator's
// token; other callers get wsauth.ErrUnauthorized. An unknown id is accepted if r.Open, or with the
// operator's token; otherwise Register returns ErrRegistrationClosed. A tombstone is ErrRemoved. Bad
// values are ErrInvalidMode, ErrURLRequired, or the error of the URL check.
func (s *Store) Register(ctx context.Context, r Registration) (Workspace, string, error) {
	if !r.Mode.valid() {
		return Workspace{}, "", ErrInvalidMode
	}
	var w Workspace
	var issued string
	err := s.inTx(ctx, func(tx *sql.Tx) (err error) {
		w, issued, err = s.register(ctx, tx, r)
		return err
	})
	if err != nil {
		return Workspace{}, "", fmt.Errorf("workspaces: register %s: %w", r.ID, err)
	}
	return w, issued, nil
}

func (s *Store) register(ctx context.Context, tx *sql.Tx, r Registration) (Workspace, string, error) {
	w, err := s.admit(ctx, tx, r)
	if err != nil {
		return Workspace{}, "", err
	}
	mode := r.Mode
	if mode == "" {
		mode = w.DeliveryMode()
	}
	if mode == Poll {
		r.URL = ""
	} else if r.URL == "" {
		return Workspace{}, "", ErrURLRequired
	} else if err := s.checkURL(r.URL); err != nil {
		return Workspace{}, "", err
	}
	w, err = scan(tx.QueryRowContext(ctx, sqlRegister, r.ID, string(r.AgentCard), r.Mode, r.URL, newSecret()))
	if err != nil {
		return Workspace{}, "", err
	}
	live, _, err := s.tokens.History(ctx, tx, r.ID)
	if err != nil || live > 0 {
		return w, "", err
	}
	bearer, _, err := s.tokens.Issue(ctx, tx, r.ID)
	return w, bearer, err
}

// admit returns the workspace's row, locked, if the caller may register it. It inserts a row for an
// unknown id. The lock serializes concurrent first registrations, so that only one of them gets the
// token.
func (s *Store) admit(ctx context.Context, tx *sql.Tx, r Registration) (Workspace, error) {
	admin := s.tokens.IsAdmin(r.Bearer)
	w, err := scan(tx.QueryRowContext(ctx, sqlLock, r.ID))
	if errors.Is(err, ErrNotFound) {
		if !admin && !r.Open {
			return Workspace{}, ErrRegistrationClosed
		}
		if _, err := tx.ExecContext(ctx, sqlCreateWithID, r.ID); err != nil {
			return Workspace{}, fmt.Errorf("create: %w", err)
		}
		w, err = scan(tx.QueryRowContext(ctx, sqlLock, r.ID))
	}
	if err != nil {
		return Workspace{}, err
	}
	if w.Status == StatusRemoved {
		return Workspace{}, ErrRemoved
	}
	if admin {
		return w, nil
	}
	_, total, err := s.tokens.History(ctx, tx, r.ID)
	if err != nil {
		return Workspace{}, err
	}
	if total > 0 {
		_, err = s.tokens.AuthenticateIn(ctx, tx, r.ID, r.Bearer)
		return w, err
	}
	if !r.Open {
		return Workspace{}, ErrRegistrationClosed
	}
	return w, nil
}
