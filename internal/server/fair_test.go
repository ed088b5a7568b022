package server_test

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// raw sends the beginning of a request, and leaves the connection open until the test ends.
func raw(t *testing.T, p *servertest.Platform, method, path, token, header, body string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(p.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if token != "" {
		header += "Authorization: Bearer " + token + "\r\n"
	}
	// Writing ends early when the request is refused.
	_, _ = io.WriteString(conn, method+" "+path+" HTTP/1.1\r\nHost: x\r\n"+header+"\r\n"+body)
	return conn
}

// answered returns the status line of a connection's answer, "" if there is none within d.
func answered(conn net.Conn, d time.Duration) string {
	_ = conn.SetReadDeadline(time.Now().Add(d))
	line, _ := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line)
}

// inventedToken has the form of a token.
func inventedToken() string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, 42)
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return "mol_ws_" + string(b) + "A"
}

// noFailures fails the test if the platform has logged a failure: saturation is none.
func noFailures(t *testing.T, p *servertest.Platform) {
	t.Helper()
	for _, line := range p.Logs.Lines(t, "failed") {
		t.Errorf("logged as a failure: %v", line)
	}
}

// everything is all that a workspace does with what is shared out, once.
func everything(t *testing.T, p *servertest.Platform, w servertest.Workspace) {
	t.Helper()
	ordinary(t, p, w)
	of := "/workspaces/" + w.ID
	must(t, p, http.StatusOK, "POST", of+"/a2a", w.Token, `{"method":"m","params":"`+strings.Repeat("x", 100<<10)+`"}`, nil)
	must(t, p, http.StatusOK, "GET", of+"/activity?limit=100", w.Token, "", nil)
	must(t, p, http.StatusOK, "GET", of+"/activity?wait=1&type=nothing", w.Token, "", nil)
	must(t, p, http.StatusOK, "POST", "/registry/register", w.Token,
		fmt.Sprintf(`{"id":%q,"agent_card":{},"delivery_mode":"poll"}`, w.ID), nil)
	listen(t, p, w.ID, w.Token, "").close()
}

// Unfinished bodies of whoever has no valid token, more than their budget holds, cost nobody anything who has one; nor
// does a flood of invented tokens, from many addresses. Planted: one budget for all bodies.
func TestFair_StrangersCostWorkspacesNothing(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.MaxJSONBytes, s.TrustedProxies = "8MiB", "127.0.0.1" })
	w := p.Create(t, "poll", "")
	body := `{"id":"` + strings.Repeat("x", 900<<10)
	var refused int
	for i := range 20 {
		length := fmt.Sprintf("Content-Length: 1000000\r\nX-Forwarded-For: 192.0.2.%d\r\n", i)
		conn := raw(t, p, "POST", "/registry/register", "", length, body)
		raw(t, p, "POST", "/registry/register", inventedToken(), length, body)
		raw(t, p, "POST", "/registry/heartbeat", inventedToken(), length, body)
		raw(t, p, "POST", "/workspaces/"+w.ID+"/a2a", inventedToken(), length, body)
		go func() { _, _ = io.Copy(io.Discard, conn) }()
	}
	for begun := time.Now(); refused == 0; time.Sleep(20 * time.Millisecond) { // until their budget is used up
		for _, line := range p.Logs.Lines(t, "refused") {
			if line["code"] == "saturated" {
				refused++
			}
		}
		if time.Since(begun) > testTimeout {
			t.Fatal("strangers were never refused")
		}
	}
	for i := range 120 { // what is left between the long ones
		raw(t, p, "POST", "/registry/register", "", fmt.Sprintf("Content-Length: 1000000\r\nX-Forwarded-For: 192.0.2.%d\r\n", i), body[:10<<10])
	}
	for range 5 {
		everything(t, p, w)
	}
	must(t, p, http.StatusOK, "GET", "/readyz", "", "", nil)
	noFailures(t, p)
}

// One workspace takes all that it gets of everything, by all its tokens, and holds it. Others do what they do. Planted:
// budgets without holders; the token as the holder.
func TestFair_OneWorkspaceLeavesRoomForOthers(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) {
		s.MaxUploads, s.MaxDownloads, s.MaxWaits, s.MaxStreams, s.MaxJSONBytes, s.RateLimit = "8", "8", "8", "8", "8MiB", "0"
	})
	w, others := p.Create(t, "poll", ""), []servertest.Workspace{p.Create(t, "poll", ""), p.Create(t, "poll", "")}
	tokens := []string{w.Token}
	for range 5 {
		_, token := mint(t, p, w)
		tokens = append(tokens, token)
	}
	file := stageLong(t, p, w)
	of := "/workspaces/" + w.ID
	upload := "Content-Length: 100000000\r\nContent-Type: multipart/form-data; boundary=b\r\n"
	part := "--b\r\nContent-Disposition: form-data; name=files\r\n\r\nx"
	var saturated [4]int // uploads, messages, streams, waits
	for i := range 20 {
		token := tokens[i%len(tokens)]
		for kind, conn := range []net.Conn{
			raw(t, p, "POST", of+"/chat/uploads", token, upload, part),
			raw(t, p, "POST", of+"/a2a", token, "Content-Length: 1000000\r\n", `{"method":"`+strings.Repeat("x", 900<<10)),
			raw(t, p, "GET", of+"/events/stream", token, "", ""),
			raw(t, p, "GET", of+"/activity?wait=55&type=nothing", token, "", ""),
		} {
			if strings.Contains(answered(conn, 150*time.Millisecond), "503") {
				saturated[kind]++
			}
		}
		raw(t, p, "GET", of+"/pending-uploads/"+file.ID()+"/content", token, "", "") // and does not read it
	}
	for i := range 120 { // what is left between the long ones
		raw(t, p, "POST", of+"/a2a", tokens[i%len(tokens)], "Content-Length: 1000000\r\n", `{"method":"`+strings.Repeat("x", 10<<10))
	}
	// A refused body is read on for a while; its answer comes later. So uploads and messages are seen in the log.
	if saturated[2] < 10 || saturated[3] < 10 {
		t.Errorf("streams and waits refused: %v", saturated[2:])
	}
	for range 3 {
		for _, other := range others {
			everything(t, p, other)
		}
	}
	noFailures(t, p)
}

// A row of one workspace is locked, as by a replica that froze. More requests of it wait than there are connections.
// Others are served, and the replica is ready. When the lock is gone so is all trouble. Planted: no share of the
// connections; lock_timeout as an internal error.
func TestFair_AWorkspaceWhoseRowIsLockedSlowsItselfOnly(t *testing.T) {
	t.Parallel()
	for name, lock := range map[string]string{
		"counter":   `SELECT 1 FROM activity_counters WHERE workspace_id = $1 FOR UPDATE`,
		"workspace": `SELECT 1 FROM workspaces WHERE id = $1 FOR UPDATE`,
		"files":     `SELECT 1 FROM pending_uploads WHERE workspace_id = $1 FOR UPDATE`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := servertest.Start(t, func(s *config.Settings) { s.RateLimit = "0" })
			w, other := p.Create(t, "poll", ""), p.Create(t, "poll", "")
			say(t, p, w, "first")
			file := stage(t, p, w, "a")[0]
			tx, err := p.DB.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback() // after the first it does nothing
			if _, err := tx.Exec(lock, w.ID); err != nil {
				t.Fatal(err)
			}
			var waiting sync.WaitGroup
			of := "/workspaces/" + w.ID
			for range 40 {
				for _, r := range []servertest.Request{
					{Method: "POST", Path: of + "/a2a", Token: w.Token, Body: strings.NewReader(`{"method":"m"}`)},
					{Method: "POST", Path: "/registry/heartbeat", Token: w.Token, Body: strings.NewReader(`{"workspace_id":"` + w.ID + `"}`)},
					{Method: "POST", Path: of + "/tokens", Token: w.Token},
					{Method: "POST", Path: of + "/pending-uploads/" + file.ID() + "/ack", Token: w.Token},
					{Method: "POST", Path: "/registry/register", Body: strings.NewReader(`{"id":"` + w.ID + `","agent_card":{}}`)},
				} {
					waiting.Go(func() {
						// 401 is for the stranger, 409 for more tokens than there may be.
						switch got := p.Do(t, r); got.Status {
						case http.StatusOK, http.StatusCreated, http.StatusUnauthorized, http.StatusConflict:
						case http.StatusServiceUnavailable:
							if got.Header.Get("Retry-After") == "" {
								t.Errorf("%s: 503 without Retry-After: %s", r.Path, got.Body)
							}
						case http.StatusTooManyRequests:
						default:
							t.Errorf("%s: %d %s", r.Path, got.Status, got.Body)
						}
					})
				}
				waiting.Go(func() { uploadForm(t, p, w.ID, w.Token, "x") })
			}
			for begun := time.Now(); time.Since(begun) < 7*time.Second; {
				round := time.Now()
				everything(t, p, other)
				must(t, p, http.StatusOK, "GET", "/readyz", "", "", nil)
				if took := time.Since(round); took > 15*time.Second { // it includes a wait of a second
					t.Errorf("another workspace took %v", took)
				}
			}
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			waiting.Wait()
			everything(t, p, w)
		})
	}
}

// Requests wait for every connection of the pool, here for the table in which tokens are looked up. Planted: /readyz
// through that pool.
func TestReady_HasAConnectionOfItsOwn(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	tx, err := p.DB.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() // after the first it does nothing
	if _, err := tx.Exec("LOCK TABLE workspace_tokens"); err != nil {
		t.Fatal(err)
	}
	var waiting sync.WaitGroup
	for range 40 {
		waiting.Go(func() { p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID, Token: w.Token}) })
	}
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		metrics := string(call(t, p, "GET", "/metrics", "", "").Body)
		if strings.Contains(metrics, "\ngo_sql_in_use_connections{db_name=\"main\"} 11\n") {
			break
		}
		if time.Since(begun) > testTimeout {
			t.Fatal("the pool is not used up")
		}
	}
	must(t, p, http.StatusOK, "GET", "/readyz", "", "", nil)
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	waiting.Wait()
}
