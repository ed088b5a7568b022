package servertest

import (
	"testing"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestStart_ServesOnARealDatabase(t *testing.T) {
	p := Start(t)
	w := p.Create(t, "poll", "")
	if r := p.Do(t, Request{Path: "/workspaces/" + w.ID, Token: w.Token}); r.Status != 200 {
		t.Errorf("own workspace: %d %s", r.Status, r.Body)
	}
}
