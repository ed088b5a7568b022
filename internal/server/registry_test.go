package server_test

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// registered is the answer to a registration.
type registered struct {
	Status string `json:"status"`
	Mode   string `json:"delivery_mode"`
	Token  string `json:"auth_token"`
	Secret string `json:"platform_inbound_secret"`
}

func closed(s *config.Settings) { s.Registration = "closed" }

// registration is a body for /registry/register; further is what it has beside id and card.
func registration(id, further string) string {
	return `{"id":"` + id + `","agent_card":{"name":"test","skills":["\u0000"]}` + further + `}`
}

func registerAs(t testing.TB, p *servertest.Platform, id, token, further string) registered {
	t.Helper()
	var answer registered
	must(t, p, http.StatusOK, "POST", "/registry/register", token, registration(id, further), &answer)
	return answer
}

// shown is a workspace as the API shows it.
type shown struct {
	ID        string  `json:"id"`
	Name      string  `json:"name"`
	Status    string  `json:"status"`
	Mode      string  `json:"delivery_mode"`
	Heartbeat *string `json:"last_heartbeat_at"`
}

func show(t testing.TB, p *servertest.Platform, id string) shown {
	t.Helper()
	var w shown
	must(t, p, http.StatusOK, "GET", "/workspaces/"+id, admin, "", &w)
	return w
}

func TestRegister_NewWorkspaceGetsItsToken(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	id := uuid.NewString()
	first := registerAs(t, p, id, "", `,"delivery_mode":"poll"`)
	if first.Status != "registered" || first.Mode != "poll" || first.Token == "" || first.Secret == "" {
		t.Errorf("first: %+v", first)
	}
	if w := show(t, p, id); w.Status != "online" || w.Mode != "poll" || w.Heartbeat != nil {
		t.Errorf("shown as %+v", w)
	}
	must(t, p, http.StatusOK, "GET", "/workspaces/"+id+"/activity", first.Token, "", nil)

	again := registerAs(t, p, id, first.Token, "")
	if again.Token != "" || again.Mode != "poll" || again.Secret != first.Secret {
		t.Errorf("again: %+v, want the stored mode, the same secret and no token", again)
	}
	if byAdmin := registerAs(t, p, id, admin, ""); byAdmin.Token != "" {
		t.Errorf("by the operator: %+v, want no token", byAdmin)
	}
}

func TestRegister_ModeAndURL(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t) // loopback may be called
	for _, c := range []struct {
		further string
		mode    string // "": refused
		code    string
		text    string
	}{
		{`,"delivery_mode":"poll"`, "poll", "", ""},
		{`,"delivery_mode":"poll","url":"not a url"`, "poll", "", ""},
		{`,"delivery_mode":"push","url":"http://127.0.0.1:1/a2a?x=y"`, "push", "", ""},
		{`,"delivery_mode":"push","url":"https://agent.example.com"`, "push", "", ""},
		{`,"url":"https://agent.example.com"`, "push", "", ""},
		{`,"delivery_mode":"","url":"https://agent.example.com"`, "push", "", ""},
		{`,"delivery_mode":null,"url":"https://agent.example.com"`, "push", "", ""},
		{``, "", "url_required", "url"},
		{`,"delivery_mode":"push"`, "", "url_required", "url"},
		{`,"delivery_mode":"pull"`, "", "invalid_delivery_mode", "delivery_mode"},
		{`,"delivery_mode":"Poll"`, "", "invalid_delivery_mode", "delivery_mode"},
		{`,"delivery_mode":" poll"`, "", "invalid_delivery_mode", "delivery_mode"},
		{`,"delivery_mode":1`, "", "invalid_request", "delivery_mode"},
		{`,"url":"/relative"`, "", "invalid_url", "url"},
		{`,"url":"agent.example.com"`, "", "invalid_url", "url"},
		{`,"url":"ftp://agent.example.com"`, "", "invalid_url", "url"},
		{`,"url":"https://user:password@agent.example.com"`, "", "invalid_url", "url"},
		{`,"url":"https://"`, "", "invalid_url", "url"},
		{`,"url":"http://10.0.0.1"`, "", "url_not_allowed", "private"},
		{`,"url":"http://169.254.169.254/latest/meta-data"`, "", "url_not_allowed", "private"},
		{`,"url":"http://[::ffff:10.0.0.1]"`, "", "url_not_allowed", "private"},
	} {
		id := uuid.NewString()
		if c.mode != "" {
			if got := registerAs(t, p, id, "", c.further); got.Mode != c.mode {
				t.Errorf("%s: mode %s, want %s", c.further, got.Mode, c.mode)
			}
			continue
		}
		isError(t, call(t, p, "POST", "/registry/register", "", registration(id, c.further)), http.StatusBadRequest, c.code, c.text)
		must(t, p, http.StatusNotFound, "GET", "/workspaces/"+id, admin, "", nil) // no trace of it
	}
}

func TestRegister_ChangesModeOnlyWhenTold(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	const url = `,"url":"http://127.0.0.1:1"`
	for _, step := range []struct{ further, want string }{
		{``, "poll"}, {url, "poll"}, {`,"delivery_mode":"push"` + url, "push"}, {url, "push"}, {`,"delivery_mode":"poll"`, "poll"},
	} {
		if got := registerAs(t, p, w.ID, w.Token, step.further); got.Mode != step.want || show(t, p, w.ID).Mode != step.want {
			t.Errorf("%q: %s, want %s", step.further, got.Mode, step.want)
		}
	}
}

func TestRegister_BadBodies(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	for body, code := range map[string]string{
		`{}`:                             "invalid_id",
		`null`:                           "invalid_id",
		`{"id":"x","agent_card":{}}`:     "invalid_id",
		`{"id":1,"agent_card":{}}`:       "invalid_request",
		`{"id":"` + nobody + `"}`:        "invalid_agent_card",
		registrationCard(`"a string"`):   "invalid_agent_card",
		registrationCard(`["an array"]`): "invalid_agent_card",
		registrationCard(`null`):         "invalid_agent_card",
		registrationCard(`{`):            "invalid_json",
	} {
		isError(t, call(t, p, "POST", "/registry/register", "", body), http.StatusBadRequest, code, "")
	}
}

func registrationCard(card string) string {
	return `{"id":"` + nobody + `","delivery_mode":"poll","agent_card":` + card + `}`
}

// Nobody takes over an id: not with another's token, and not when all of its tokens are
// revoked.
func TestRegister_NobodyTakesOver(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	takeover := registration(w.ID, `,"delivery_mode":"push","url":"http://127.0.0.1:1"`)
	tokens := []string{"", "malformed", unknownToken, other.Token, w.Secret}
	for _, token := range tokens {
		isError(t, call(t, p, "POST", "/registry/register", token, takeover), http.StatusUnauthorized, "unauthorized", "token")
	}
	var list []struct{ ID string }
	must(t, p, http.StatusOK, "GET", "/workspaces/"+w.ID+"/tokens", w.Token, "", &list)
	must(t, p, http.StatusOK, "DELETE", "/workspaces/"+w.ID+"/tokens/"+list[0].ID, w.Token, "", nil)
	for _, token := range append(tokens, w.Token) {
		isError(t, call(t, p, "POST", "/registry/register", token, takeover), http.StatusUnauthorized, "unauthorized", "token")
	}
	if got := show(t, p, w.ID); got.Mode != "poll" {
		t.Errorf("it was changed: %+v", got)
	}
	if got := registerAs(t, p, w.ID, admin, ""); got.Token == "" {
		t.Error("the operator gets no new token for a workspace that has none")
	}
}

// registerAtOnce registers an id n times at once without a token, and returns the statuses in
// order.
func registerAtOnce(t testing.TB, p *servertest.Platform, id string, n int) []int {
	t.Helper()
	statuses := make([]int, n)
	var wg sync.WaitGroup
	for i := range statuses {
		wg.Go(func() {
			statuses[i] = call(t, p, "POST", "/registry/register", "", registration(id, `,"delivery_mode":"poll"`)).Status
		})
	}
	wg.Wait()
	slices.Sort(statuses)
	return statuses
}

var onlyOne = []int{http.StatusOK, http.StatusUnauthorized, http.StatusUnauthorized, http.StatusUnauthorized}

func TestRegister_OnlyOneOfManyGetsAnUnknownID(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	if got := registerAtOnce(t, p, uuid.NewString(), len(onlyOne)); !slices.Equal(got, onlyOne) {
		t.Errorf("statuses %v, want %v", got, onlyOne)
	}
}

func TestRegister_Closed(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, closed)
	id := uuid.NewString()
	poll := registration(id, `,"delivery_mode":"poll"`)
	for _, token := range []string{"", "malformed", unknownToken} {
		isError(t, call(t, p, "POST", "/registry/register", token, poll), http.StatusForbidden, "registration_closed", "operator")
	}
	must(t, p, http.StatusNotFound, "GET", "/workspaces/"+id, admin, "", nil)
	first := registerAs(t, p, id, admin, `,"delivery_mode":"poll"`)
	registerAs(t, p, id, first.Token, "")
	// A row from before there were tokens is let in by the operator only.
	exec(t, p, `DELETE FROM workspace_tokens`)
	isError(t, call(t, p, "POST", "/registry/register", "", poll), http.StatusUnauthorized, "unauthorized", "token")
}

func TestRegister_RemovedIsGone(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	remove(t, p, w)
	for _, token := range []string{"", w.Token, admin} {
		isError(t, call(t, p, "POST", "/registry/register", token, registration(w.ID, "")), http.StatusGone, "workspace_removed", "removed")
	}
}

// A legacy row has neither mode nor token nor secret. It is somebody's, so only the operator lets it in.
func TestRegister_LegacyRow(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	id := uuid.NewString()
	exec(t, p, `INSERT INTO workspaces (id, name) VALUES ($1, 'legacy')`, id)
	if w := show(t, p, id); w.Mode != "push" {
		t.Errorf("shown as %s, want push", w.Mode)
	}
	const poll = `,"delivery_mode":"poll"`
	isError(t, call(t, p, "POST", "/registry/register", "", registration(id, poll)), http.StatusUnauthorized, "unauthorized", "token")
	if !strings.Contains(p.Logs.String(), "never had a token; register it with ADMIN_TOKEN") {
		t.Error("the log does not say how the owner of a legacy row gets in")
	}
	if got := registerAs(t, p, id, admin, poll); got.Token == "" || got.Secret == "" || show(t, p, id).Name != "legacy" {
		t.Errorf("answer %+v", got)
	}
}

func TestHeartbeat(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	if got := show(t, p, w.ID); got.Status != "provisioning" || got.Heartbeat != nil {
		t.Errorf("before: %+v", got)
	}
	const report = `"active_tasks":3,"error_rate":0.5,"sample_error":"\u0000","uptime_seconds":86,"current_task":null,"runtime_state":{"a":[1]}`
	beat := func(token, further string) *servertest.Response {
		return call(t, p, "POST", "/registry/heartbeat", token, `{"workspace_id":"`+w.ID+`"`+further+`}`)
	}
	for _, further := range []string{"", `,"unknown":1`, "," + report} {
		isJSON(t, beat(w.Token, further), http.StatusOK, `{"status":"ok","platform_inbound_secret":"`+w.Secret+`"}`)
	}
	if got := show(t, p, w.ID); got.Status != "online" || got.Heartbeat == nil {
		t.Errorf("after: %+v", got)
	}
	var kept string
	if err := p.DB.QueryRowContext(t.Context(), `SELECT last_heartbeat FROM workspaces WHERE id = $1`, w.ID).Scan(&kept); err != nil ||
		!strings.Contains(kept, `"runtime_state":{"a":[1]}`) || strings.Contains(kept, "unknown") {
		t.Errorf("kept %s (%v)", kept, err)
	}
	exec(t, p, `UPDATE workspaces SET platform_inbound_secret = NULL WHERE id = $1`, w.ID)
	var minted registered
	if beat(w.Token, "").JSON(t, &minted); minted.Secret == "" || minted.Secret == w.Secret {
		t.Errorf("secret %q, want a new one", minted.Secret)
	}
	isError(t, beat(other.Token, ""), http.StatusUnauthorized, "unauthorized", "token")
	isError(t, call(t, p, "POST", "/registry/heartbeat", w.Token, `{"workspace_id":"x"}`), http.StatusBadRequest, "invalid_workspace_id", "workspace_id")
	isError(t, call(t, p, "POST", "/registry/heartbeat", w.Token, `{}`), http.StatusBadRequest, "invalid_workspace_id", "workspace_id")
	isError(t, call(t, p, "POST", "/registry/heartbeat", admin, `{"workspace_id":"`+nobody+`"}`), http.StatusNotFound, "workspace_not_found", "workspace not found")
	remove(t, p, w)
	isError(t, beat(w.Token, ""), http.StatusUnauthorized, "unauthorized", "token")
	isError(t, beat(admin, ""), http.StatusNotFound, "workspace_not_found", "workspace not found")
}
