package server_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// poison are JSON values that Go accepts and a reader in another language does not, with what is said of them.
var poison = map[string]string{
	strings.Repeat("9", 5000): "more than 400 characters",
	"1e400":                   "range of an IEEE double",
	`"` + "\xff" + `"`:        "not UTF-8",
	`"\ud800"`:                "surrogate",
	strings.Repeat("[", 600) + strings.Repeat("]", 600): "500 levels",
}

// A value that one reader cannot parse would stop its inbox for ever. Planted: each check left out.
func TestJSON_WhatOthersCannotReadIsRefused(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	for value, says := range poison {
		for _, door := range []struct{ path, body, place string }{
			{"/workspaces/" + w.ID + "/a2a", `{"method":"m","params":{"list":[1,{"n":VALUE}]}}`, "params.list[1].n"},
			{"/registry/register", `{"id":"` + w.ID + `","delivery_mode":"poll","agent_card":{"n":VALUE}}`, "agent_card.n"},
			{"/registry/heartbeat", `{"workspace_id":"` + w.ID + `","runtime_state":{"n":VALUE}}`, "runtime_state.n"},
			{"/workspaces", `{"name":"x","delivery_mode":"poll","n":VALUE}`, "n"},
		} {
			token := w.Token
			if door.path == "/workspaces" {
				token = admin
			}
			r := call(t, p, "POST", door.path, token, strings.Replace(door.body, "VALUE", value, 1))
			isError(t, r, http.StatusBadRequest, "invalid_json", says)
			if says != "500 levels" {
				isError(t, r, http.StatusBadRequest, "invalid_json", ": "+door.place+" ")
			}
		}
	}
	if rows := read(t, p, w, ""); len(rows) != 0 {
		t.Errorf("%d rows, want none", len(rows))
	}
}

// The caller gets what the workspace answered; readers of the inbox get text that they can read.
func TestJSON_PushAnswerThatOthersCannotReadIsRecordedAsText(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.PushAllowCIDRs = "127.0.0.0/8" })
	for value := range poison {
		answer := `{"result":` + value + `}`
		agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, answer)
		}))
		t.Cleanup(agent.Close)
		w := p.Create(t, "push", agent.URL)
		r := call(t, p, "POST", "/workspaces/"+w.ID+"/a2a", w.Token, `{"method":"m"}`)
		if r.Status != http.StatusOK || string(r.Body) != answer {
			t.Errorf("relayed %d %.80s", r.Status, r.Body)
		}
		if got := first(t, p, w, ""); got.Response[0] != '"' {
			t.Errorf("recorded %.80s, want a string", got.Response)
		}
	}
}

func TestRegister_AgentCardIsBounded(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	register := func(size int) *servertest.Response {
		card := `{"n":"` + strings.Repeat("x", size-8) + `"}`
		return call(t, p, "POST", "/registry/register", w.Token, `{"id":"`+w.ID+`","delivery_mode":"poll","agent_card":`+card+`}`)
	}
	if r := register(64 << 10); r.Status != http.StatusOK {
		t.Errorf("a card of 64 KiB: %d %s", r.Status, r.Body)
	}
	isError(t, register(64<<10+1), http.StatusBadRequest, "invalid_agent_card", "65536 bytes")
}
