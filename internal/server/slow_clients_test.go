package server_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/server"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

const (
	// slowTimes is what slow clients are given here. Less would cut quick ones on a busy machine.
	slowTimes = 5 * time.Second

	// slowTick is when a slow client sends or reads its next byte.
	slowTick = slowTimes / 20

	// slowEach is how many clients there are of each kind.
	slowEach = 15

	// slowLimit is when all must be gone, far before those that are idle.
	slowLimit = time.Minute
)

// impatient runs a platform that does not wait long. open has the remote addresses of its
// connections.
func impatient(t *testing.T) (p *servertest.Platform, open *sync.Map) {
	t.Helper()
	settings := servertest.Settings(t)
	settings.DatabaseURL, settings.MaxJSONBytes, settings.RateLimit = pgtest.New(t), "1GiB", "0"
	c, err := settings.Load()
	if err != nil {
		t.Fatal(err)
	}
	logs := &servertest.Logs{}
	s, open, err := server.NewImpatient(t.Context(), c, slog.New(slog.NewJSONHandler(logs, nil)), slowTimes)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("platform: %v", err)
		}
	})
	return &servertest.Platform{URL: "http://" + s.Addr(), Config: c, DB: pgtest.Open(t, settings.DatabaseURL), Logs: logs}, open
}

// A slowClient sends head at once and then text, or reads the answer, a byte at a time.
type slowClient struct {
	name       string
	head, text string
	reads      bool
	answer     string // how the answer to one that sends begins; "": it need not come
}

func slowClients(t *testing.T, p *servertest.Platform) []slowClient {
	t.Helper()
	w, short := p.Create(t, "poll", ""), p.Create(t, "poll", "")
	file := stageLong(t, p, w)
	for range 3 {
		message(t, p, w, 900<<10)
	}
	message(t, p, short, 60<<10)
	start := func(method, path, token, more string) string {
		return method + " " + path + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\n" + more + "\r\n"
	}
	const length = "Content-Length: 100000\r\n"
	of := "/workspaces/" + w.ID
	return []slowClient{
		{name: "says nothing"},
		{name: "request line", text: "GET /" + strings.Repeat("a", 1000)},
		{name: "header", head: "GET /health HTTP/1.1\r\nHost: x\r\n", text: strings.Repeat("X-A: b\r\n", 100)},
		{name: "multipart", head: start("POST", of+"/chat/uploads", w.Token, length+"Content-Type: multipart/form-data; boundary=b\r\n") +
			"--b\r\nContent-Disposition: form-data; name=files\r\n\r\n", text: "x", answer: "HTTP/1.1 408"},
		{name: "message", head: start("POST", of+"/a2a", w.Token, length) + "{", text: " ", answer: "HTTP/1.1 408"},
		{name: "newcomer", head: start("POST", "/registry/register", "", length) + "{", text: " ", answer: "HTTP/1.1 408"},
		{name: "heartbeat of nobody", head: start("POST", "/registry/heartbeat", "", length) + "{", text: " ", answer: "HTTP/1.1 401"},
		{name: "refused unread", head: start("POST", of+"/a2a", "", length) + "{", text: " ", answer: "HTTP/1.1 401"},
		{name: "reads a file", head: start("GET", of+"/pending-uploads/"+file.ID()+"/content", w.Token, ""), reads: true},
		{name: "reads a long page", head: start("GET", of+"/activity", w.Token, ""), reads: true},
		{name: "reads a page that the kernel takes", head: start("GET", "/workspaces/"+short.ID+"/activity", short.Token, ""), reads: true},
	}
}

// stageLong uploads a file that no kernel takes at once.
func stageLong(t *testing.T, p *servertest.Platform, w servertest.Workspace) upload {
	t.Helper()
	body := "--b\r\nContent-Disposition: form-data; name=files; filename=long\r\n\r\n" + strings.Repeat("content ", 1<<20) + "\r\n--b--\r\n"
	r := p.Do(t, servertest.Request{Method: http.MethodPost, Path: "/workspaces/" + w.ID + "/chat/uploads", Token: w.Token,
		Header: http.Header{"Content-Type": {"multipart/form-data; boundary=b"}}, Body: strings.NewReader(body)})
	var answer struct{ Files []upload }
	r.JSON(t, &answer)
	if r.Status != http.StatusOK || len(answer.Files) != 1 {
		t.Fatalf("upload: %d %s", r.Status, r.Body)
	}
	return answer.Files[0]
}

// message queues one of about size bytes.
func message(t *testing.T, p *servertest.Platform, w servertest.Workspace, size int) {
	t.Helper()
	body := `{"jsonrpc":"2.0","method":"message/send","params":{"text":"` + strings.Repeat("z", size) + `"}}`
	must(t, p, http.StatusOK, http.MethodPost, "/workspaces/"+w.ID+"/a2a", w.Token, body, nil)
}

// smallWindow makes a client that does not read take little.
func smallWindow(_, _ string, raw syscall.RawConn) error {
	var err error
	if cerr := raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 16<<10) }); cerr != nil {
		return cerr
	}
	return err
}

// dial connects and goes on until the connection or the test ends.
func (s slowClient) dial(t *testing.T, addr string, wg *sync.WaitGroup) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{Control: smallWindow}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, s.head); err != nil {
		t.Fatal(err)
	}
	if s.reads {
		go everyTick(t.Context(), func(int) error { _, err := conn.Read(make([]byte, 1)); return err })
		return conn
	}
	if s.text != "" {
		go everyTick(t.Context(), func(i int) error { _, err := io.WriteString(conn, s.text[i%len(s.text):][:1]); return err })
	}
	wg.Go(func() {
		line, _ := bufio.NewReader(conn).ReadString('\n')
		if !strings.HasPrefix(line, s.answer) {
			t.Errorf("%s: answered %q, want %q", s.name, line, s.answer)
		}
	})
	return conn
}

func everyTick(ctx context.Context, do func(i int) error) {
	tick := time.NewTicker(slowTick)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-tick.C:
			if do(i) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// 150 clients that hardly move: the platform lets go of all of them, and meanwhile serves others.
// With 1,000 it was measured, see docs/operations.md. Planted, one at a time: no time for the header;
// no BoundBody; no deadline of a write; no bound on an idle connection whose client does not take the rest.
func TestServer_LetsGoOfSlowClientsAndServesOthers(t *testing.T) {
	t.Parallel()
	p, open := impatient(t)
	w := p.Create(t, "poll", "")
	kinds := slowClients(t, p)
	addr := strings.TrimPrefix(p.URL, "http://")
	names := map[string]string{} // by address
	var wg sync.WaitGroup
	for range slowEach {
		for _, kind := range kinds {
			names[kind.dial(t, addr, &wg).LocalAddr().String()] = kind.name
		}
	}
	left := func() map[string]int {
		n := map[string]int{}
		for address, name := range names {
			if _, ok := open.Load(address); ok {
				n[name]++
			}
		}
		return n
	}
	served := 0
	again := time.NewTicker(slowTick)
	defer again.Stop()
	for late := time.After(slowLimit); len(left()) > 0; served++ {
		ordinary(t, p, w)
		select {
		case <-late:
			t.Fatalf("open after %s: %v", slowLimit, left())
		case <-again.C:
		}
	}
	wg.Wait()
	t.Logf("%d slow clients are gone; others were served %d times", len(names), served)
	if n := len(p.Logs.Lines(t, "panic")); n > 0 {
		t.Errorf("%d panics", n)
	}
}

// ordinary is a round of what a canvas and a poller do.
func ordinary(t *testing.T, p *servertest.Platform, w servertest.Workspace) {
	t.Helper()
	file := stage(t, p, w, "a.txt")[0]
	must(t, p, http.StatusOK, "GET", "/workspaces/"+w.ID+"/activity?limit=5", w.Token, "", nil)
	must(t, p, http.StatusOK, "POST", "/registry/heartbeat", w.Token, fmt.Sprintf(`{"workspace_id":%q}`, w.ID), nil)
	if r := call(t, p, "GET", "/workspaces/"+w.ID+"/pending-uploads/"+file.ID()+"/content", w.Token, ""); string(r.Body) != "a.txt" {
		t.Errorf("fetched %d %s", r.Status, r.Body)
	}
	must(t, p, http.StatusOK, "POST", "/workspaces/"+w.ID+"/pending-uploads/"+file.ID()+"/ack", w.Token, "", nil)
}
