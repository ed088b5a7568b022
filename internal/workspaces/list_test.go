package workspaces_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/workspaces"
)

func TestList_NewestFirstWithoutRemovedInPages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if list, more, err := f.List(t.Context(), uuid.Nil, 0); err != nil || list == nil || len(list) > 0 || more {
		t.Errorf("none: %v, %t, %v, want an empty list", list, more, err)
	}
	first, _ := f.create(t, workspaces.Poll, "")
	removed, _ := f.create(t, workspaces.Poll, "")
	last, _ := f.create(t, workspaces.Push, goodURL)
	f.remove(t, removed.ID)
	check := func(after uuid.UUID, limit int, wantMore bool, want ...workspaces.Workspace) {
		t.Helper()
		list, more, err := f.List(t.Context(), after, limit)
		if err != nil || len(list) != len(want) || more != wantMore {
			t.Fatalf("after %s: %+v, more %t, %v; want %+v, %t", after, list, more, err, want, wantMore)
		}
		for i := range want {
			if list[i].Workspace != want[i] {
				t.Errorf("after %s: %d is %+v, want %+v", after, i, list[i], want[i])
			}
		}
	}
	check(uuid.Nil, 0, false, last, first)
	check(uuid.Nil, workspaces.MaxPage+1, false, last, first)
	check(uuid.Nil, 1, true, last)
	check(last.ID, 1, false, first)
	check(removed.ID, 1, false, first) // removed between two pages
	check(first.ID, 1, false)
	if _, _, err := f.List(t.Context(), uuid.New(), 1); !errors.Is(err, workspaces.ErrNotFound) {
		t.Errorf("after an unknown one: %v, want ErrNotFound", err)
	}
}

// Planted: acknowledged, expired or another workspace's files counted; every heartbeat taken for a recent one.
func TestList_WhatWaitsAndWhoIsThere(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	idle, _ := f.create(t, workspaces.Poll, "")
	busy, _ := f.create(t, workspaces.Poll, "")
	if _, err := f.Heartbeat(t.Context(), busy.ID, json.RawMessage(`{}`), true); err != nil {
		t.Fatal(err)
	}
	f.exec(t, "UPDATE workspaces SET last_heartbeat_at = now() - interval '3 minutes' WHERE id = $1", idle.ID)
	const stage = `
INSERT INTO pending_uploads (workspace_id, content, filename, mimetype, size_bytes, sha256, created_at, expires_at, acked_at)
SELECT $1, '', 'f', 'text/plain', $2, sha256(''), now() - $3::interval, now() + $4::interval, CASE WHEN $5 THEN now() END`
	f.exec(t, stage, busy.ID, 0, "2 hours", "1 hour", false)
	f.exec(t, stage, busy.ID, 0, "1 hour", "1 hour", false)
	f.exec(t, stage, busy.ID, 0, "3 hours", "1 hour", true)
	f.exec(t, stage, busy.ID, 0, "4 hours", "-1 hour", false)
	list, _, err := f.List(t.Context(), uuid.Nil, 0)
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	if w := list[0]; !w.Online || w.UnackedFiles != 2 || w.OldestUnackedAt == nil || time.Since(*w.OldestUnackedAt).Round(time.Hour) != 2*time.Hour {
		t.Errorf("busy: %+v", w)
	}
	if w := list[1]; w.Online || w.UnackedFiles != 0 || w.UnackedBytes != 0 || w.OldestUnackedAt != nil {
		t.Errorf("idle: %+v", w)
	}
}
