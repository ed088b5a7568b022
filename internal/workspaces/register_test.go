package workspaces_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// The table says which callers may register a workspace, and which of them get a token.
func TestRegister_AdmitsByTokenAndConfiguration(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, strange := f.create(t, workspaces.Poll, "")
	unknown := func(*testing.T) (uuid.UUID, string) { return uuid.New(), "" }
	legacy := func(t *testing.T) (uuid.UUID, string) { return f.legacy(t), "" }
	withToken := func(t *testing.T) (uuid.UUID, string) {
		w, bearer := f.create(t, workspaces.Poll, "")
		return w.ID, bearer
	}
	revoked := func(t *testing.T) (uuid.UUID, string) {
		id, bearer := withToken(t)
		f.revokeAll(t, id)
		return id, bearer
	}
	removed := func(t *testing.T) (uuid.UUID, string) {
		id, bearer := withToken(t)
		f.remove(t, id)
		return id, bearer
	}
	const own = "own"
	for name, test := range map[string]struct {
		workspace func(*testing.T) (uuid.UUID, string)
		bearer    string
		open      bool
		want      error
		token     bool // one is issued
	}{
		"unknown, open":                     {unknown, "", true, nil, true},
		"unknown, open, strange token":      {unknown, strange, true, nil, true},
		"unknown, closed":                   {unknown, "", false, workspaces.ErrRegistrationClosed, false},
		"unknown, closed, strange token":    {unknown, strange, false, workspaces.ErrRegistrationClosed, false},
		"unknown, closed, operator":         {unknown, adminToken, false, nil, true},
		"unknown, open, operator":           {unknown, adminToken, true, nil, true},
		"never had a token, open":           {legacy, "", true, wsauth.ErrUnauthorized, false},
		"never had a token, closed":         {legacy, "", false, wsauth.ErrUnauthorized, false},
		"never had a token, strange token":  {legacy, strange, true, wsauth.ErrUnauthorized, false},
		"never had a token, operator":       {legacy, adminToken, false, nil, true},
		"live token, own":                   {withToken, own, false, nil, false},
		"live token, own, open":             {withToken, own, true, nil, false},
		"live token, operator":              {withToken, adminToken, false, nil, false},
		"live token, none presented":        {withToken, "", true, wsauth.ErrUnauthorized, false},
		"live token, malformed":             {withToken, "mol_ws_", true, wsauth.ErrUnauthorized, false},
		"live token, another's":             {withToken, strange, true, wsauth.ErrUnauthorized, false},
		"all revoked, the revoked one":      {revoked, own, true, wsauth.ErrUnauthorized, false},
		"all revoked, none presented, open": {revoked, "", true, wsauth.ErrUnauthorized, false},
		"all revoked, operator":             {revoked, adminToken, false, nil, true},
		"removed, own token":                {removed, own, true, workspaces.ErrRemoved, false},
		"removed, nobody":                   {removed, "", true, workspaces.ErrRemoved, false},
		"removed, operator":                 {removed, adminToken, true, workspaces.ErrRemoved, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id, bearer := test.workspace(t)
			if test.bearer != own {
				bearer = test.bearer
			}
			r := registration(id, bearer)
			r.Open = test.open
			before, _ := f.Get(t.Context(), id)
			w, issued, err := f.Register(t.Context(), r)
			if !errors.Is(err, test.want) || (issued != "") != test.token {
				t.Fatalf("token issued: %v, %v; want %v, %v", issued != "", err, test.token, test.want)
			}
			if issued != "" && !f.works(t, id, issued) {
				t.Error("the issued token does not work")
			}
			if test.want != nil {
				if after, _ := f.Get(t.Context(), id); after != before || w != (workspaces.Workspace{}) {
					t.Errorf("a refusal changed %+v to %+v, or returned %+v", before, after, w)
				}
				return
			}
			if w.ID != id || w.Status != "online" || w.InboundSecret == "" {
				t.Errorf("registered %+v", w)
			}
		})
	}
}

func TestRegister_RefusalLeavesNoRowOfAnUnknownID(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for name, r := range map[string]workspaces.Registration{
		"closed":    {Mode: workspaces.Poll},
		"no url":    {Open: true},
		"bad url":   {Open: true, URL: badURL},
		"bad mode":  {Open: true, Mode: "pull"},
		"push only": {Open: true, Mode: workspaces.Push},
	} {
		r.ID = uuid.New()
		if _, _, err := f.Register(t.Context(), r); err == nil {
			t.Errorf("%s: registered", name)
		}
		if w, err := f.Get(t.Context(), r.ID); !errors.Is(err, workspaces.ErrNotFound) {
			t.Errorf("%s: left %+v", name, w)
		}
	}
}

func TestRegister_ModeAndURL(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	fresh := func(*testing.T) uuid.UUID { return uuid.New() }
	legacy := f.legacy
	poll := func(t *testing.T) uuid.UUID { w, _ := f.create(t, workspaces.Poll, ""); return w.ID }
	push := func(t *testing.T) uuid.UUID { w, _ := f.create(t, workspaces.Push, otherURL); return w.ID }
	for name, test := range map[string]struct {
		workspace func(*testing.T) uuid.UUID
		mode      workspaces.Mode
		url       string
		want      error
		wantMode  workspaces.Mode // the effective one
		wantURL   string
	}{
		"new, not said":                  {fresh, "", goodURL, nil, workspaces.Push, goodURL},
		"new, not said, no url":          {fresh, "", "", workspaces.ErrURLRequired, "", ""},
		"new, push":                      {fresh, workspaces.Push, goodURL, nil, workspaces.Push, goodURL},
		"new, push, no url":              {fresh, workspaces.Push, "", workspaces.ErrURLRequired, "", ""},
		"new, push, refused url":         {fresh, workspaces.Push, badURL, errBadURL, "", ""},
		"new, poll":                      {fresh, workspaces.Poll, "", nil, workspaces.Poll, ""},
		"new, poll ignores a url":        {fresh, workspaces.Poll, goodURL, nil, workspaces.Poll, ""},
		"new, poll ignores a bad url":    {fresh, workspaces.Poll, badURL, nil, workspaces.Poll, ""},
		"new, other mode":                {fresh, "pull", goodURL, workspaces.ErrInvalidMode, "", ""},
		"new, mode in capitals":          {fresh, "POLL", "", workspaces.ErrInvalidMode, "", ""},
		"poll, not said":                 {poll, "", "", nil, workspaces.Poll, ""},
		"poll, not said, url is ignored": {poll, "", badURL, nil, workspaces.Poll, ""},
		"poll to push":                   {poll, workspaces.Push, goodURL, nil, workspaces.Push, goodURL},
		"poll to push, no url":           {poll, workspaces.Push, "", workspaces.ErrURLRequired, "", ""},
		"push, not said, another url":    {push, "", goodURL, nil, workspaces.Push, goodURL},
		"push, not said, no url":         {push, "", "", workspaces.ErrURLRequired, "", ""},
		"push, not said, refused url":    {push, "", badURL, errBadURL, "", ""},
		"push to poll":                   {push, workspaces.Poll, "", nil, workspaces.Poll, otherURL},
		"legacy, not said":               {legacy, "", goodURL, nil, workspaces.Push, goodURL},
		"legacy, not said, no url":       {legacy, "", "", workspaces.ErrURLRequired, "", ""},
		"legacy to poll":                 {legacy, workspaces.Poll, "", nil, workspaces.Poll, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := registration(test.workspace(t), adminToken)
			r.Mode, r.URL = test.mode, test.url
			w, _, err := f.Register(t.Context(), r)
			if !errors.Is(err, test.want) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			if w.DeliveryMode() != test.wantMode && test.want == nil || w.URL != test.wantURL {
				t.Errorf("mode %q, url %q; want %q, %q", w.DeliveryMode(), w.URL, test.wantMode, test.wantURL)
			}
			if test.want == nil && f.get(t, r.ID) != w {
				t.Errorf("stored %+v, answered %+v", f.get(t, r.ID), w)
			}
		})
	}
}

func TestRegister_StoresTheAgentCard(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := registration(uuid.New(), adminToken)
	for _, card := range []string{`{"name" : "first\u0000"}`, `{}`} {
		r.AgentCard = []byte(card)
		if _, _, err := f.Register(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		var stored string
		if err := f.db.QueryRowContext(t.Context(), "SELECT agent_card FROM workspaces").Scan(&stored); err != nil || stored != card {
			t.Errorf("stored %s, %v, want %s", stored, err, card)
		}
	}
}

func TestRegister_KeepsTheSecret(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first, _, err := f.Register(t.Context(), registration(uuid.New(), adminToken))
	if err != nil {
		t.Fatal(err)
	}
	again, issued, err := f.Register(t.Context(), registration(first.ID, adminToken))
	if err != nil || again.InboundSecret != first.InboundSecret || issued != "" {
		t.Errorf("registered again: %+v, token issued: %v, %v; first %+v", again, issued != "", err, first)
	}
}

// A legacy row belongs to somebody: an anonymous registration must not take its id over. Its url and secret stay, the
// error says how its owner gets in, and a token that the operator mints does. Planted: the row of a workspace without
// tokens is admitted while registration is open.
func TestRegister_LegacyRowIsNotTakenOver(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	id := f.legacy(t)
	const set = "UPDATE workspaces SET url = $2, platform_inbound_secret = 'secret' WHERE id = $1"
	if _, err := f.db.ExecContext(t.Context(), set, id, otherURL); err != nil {
		t.Fatal(err)
	}
	r := registration(id, "")
	r.Open, r.Mode, r.URL = true, workspaces.Push, goodURL
	_, issued, err := f.Register(t.Context(), r)
	if !errors.Is(err, wsauth.ErrUnauthorized) || issued != "" || !strings.Contains(err.Error(), "ADMIN_TOKEN") {
		t.Errorf("anonymous: token issued: %v, %v; want ErrUnauthorized that names ADMIN_TOKEN", issued != "", err)
	}
	if w := f.get(t, id); w.URL != otherURL || w.InboundSecret != "secret" {
		t.Errorf("the refusal left %+v", w)
	}
	bearer, _, err := f.Mint(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	r.Bearer = bearer
	if w, _, err := f.Register(t.Context(), r); err != nil || w.URL != goodURL || w.InboundSecret != "secret" {
		t.Errorf("with a minted token: %+v, %v", w, err)
	}
}

// Twenty concurrent registrations of an unknown id: exactly one gets the token, and the others are refused. All are
// blocked on the workspace's row until the last one waits for it.
func TestRegister_OneOfManyFirstRegistrationsGetsTheToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const callers = 20
	id := uuid.New()
	gate, err := f.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Rollback() // after the rollback below it does nothing
	if _, err := gate.ExecContext(t.Context(), "INSERT INTO workspaces (id) VALUES ($1)", id); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	issued, errs := make([]string, callers), make([]error, callers)
	for i := range callers {
		all.Go(func() {
			r := registration(id, "")
			r.Open = true
			_, issued[i], errs[i] = f.Register(context.WithoutCancel(t.Context()), r)
		})
	}
	f.waitForBlocked(t, callers)
	if err := gate.Rollback(); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	winners := 0
	for i := range callers {
		switch {
		case errs[i] == nil && issued[i] != "" && f.works(t, id, issued[i]):
			winners++
		case !errors.Is(errs[i], wsauth.ErrUnauthorized) || issued[i] != "":
			t.Errorf("caller %d: token issued: %v, %v; want ErrUnauthorized", i, issued[i] != "", errs[i])
		}
	}
	if list, err := f.tokens.List(t.Context(), id); winners != 1 || err != nil || len(list) != 1 {
		t.Errorf("%d callers got a token, %d live, %v; want 1", winners, len(list), err)
	}
}

// waitForBlocked returns when n connections wait for a lock.
func (f fixture) waitForBlocked(t *testing.T, n int) {
	t.Helper()
	const query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
	for deadline := time.Now().Add(20 * time.Second); ; {
		var blocked int
		if err := f.db.QueryRowContext(t.Context(), query).Scan(&blocked); err != nil {
			t.Fatal(err)
		}
		if blocked >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections wait for a lock, want %d", blocked, n)
		}
	}
}
