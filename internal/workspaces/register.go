package workspaces

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/wsauth"
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
// A workspace that exists is changed only for the bearer of one of its live tokens or of the operator's
// token; other callers get wsauth.ErrUnauthorized. That includes a legacy row, which never had a token.
// An unknown id is accepted if r.Open, or with the operator's token; otherwise Register returns
// ErrRegistrationClosed. A tombstone is ErrRemoved. Bad values are ErrInvalidMode, ErrURLRequired, or the
// error of the URL check.
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
	if !s.tokens.IsAdmin(r.Bearer) {
		if err := s.delivered(ctx, tx, r.ID); err != nil {
			return Workspace{}, "", err
		}
	}
	live, _, err := s.tokens.History(ctx, tx, r.ID)
	if err != nil || live > 0 {
		return w, "", err
	}
	bearer, _, err := s.tokens.Issue(ctx, tx, r.ID)
	return w, bearer, err
}

// errNeverHadToken tells the operator, in the log, how a legacy row gets in.
var errNeverHadToken = fmt.Errorf("%w: the workspace exists and never had a token; "+
	"register it with ADMIN_TOKEN, or mint a token for it with POST /workspaces/:id/tokens", wsauth.ErrUnauthorized)

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
		created, err := s.create(ctx, tx, r.ID, !admin)
		if err != nil {
			return Workspace{}, err
		}
		w, err = scan(tx.QueryRowContext(ctx, sqlLock, r.ID))
		if err != nil || created {
			return w, err
		}
		// Another caller committed the row first. It belongs to that caller.
	} else if err != nil {
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
	if total == 0 {
		return Workspace{}, errNeverHadToken
	}
	_, err = s.tokens.AuthenticateIn(ctx, tx, r.ID, r.Bearer)
	return w, err
}

// create inserts the row of an unknown id. It returns false if another transaction has inserted it.
func (s *Store) create(ctx context.Context, tx *sql.Tx, id uuid.UUID, anonymously bool) (bool, error) {
	var result sql.Result
	var err error
	if s.base {
		result, err = tx.ExecContext(ctx, sqlCreateWithIDOnBase, id)
	} else {
		result, err = tx.ExecContext(ctx, sqlCreateWithID, id, anonymously)
	}
	if err != nil {
		return false, fmt.Errorf("create: %w", err)
	}
	n, err := result.RowsAffected()
	return n == 1, err
}
