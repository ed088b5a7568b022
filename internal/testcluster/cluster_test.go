package testcluster_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/server/servertest"
	"github.com/molecule-ai/platform/internal/testcluster"
)

// Three replicas of the compiled binary behind HAProxy. The subtests share them, one after the other.
func TestThreeReplicas(t *testing.T) {
	c := start(t, "")
	for _, test := range []struct {
		name string
		run  func(*testing.T, *testcluster.Cluster)
	}{
		{"the demo sees every file arrive", demo},
		{"each step may use another replica", stepByStep},
		{"a cursor skips nothing", followCursor},
		{"a rolling replacement fails no request", roll},
		{"a kill fails only requests in flight, and duplicates nothing", kill},
		{"a freeze loses nothing", freeze},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c) })
	}
}

// demo is `make e2e` against the balancer.
func demo(t *testing.T, c *testcluster.Cluster) {
	cmd := exec.CommandContext(contextWithTimeout(t, 3*testTimeout), "../../.venv/bin/python", "../../workspace/devtools/demo.py", "e2e")
	cmd.Env = append(os.Environ(), "BASE_URL="+c.URL, "ADMIN_TOKEN="+adminToken)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v (make setup-test installs what is missing)\n%s", err, output)
	}
}

// stepByStep uses another replica for each of an upload, its held poll, its download and its ack, in several orders.
// Planted fault: nothing announced to other replicas.
func stepByStep(t *testing.T, c *testcluster.Cluster) {
	w := platformAt(c.URL).Create(t, "poll", "")
	last := ""
	var waited time.Duration // from the answers of the uploads to those of the polls
	for i := range 6 {
		r := rand.New(rand.NewPCG(1, uint64(i))).Perm(3)
		to := func(step int) *servertest.Platform { return platformAt(c.Replicas[r[step%3]].URL()) }
		content := bytes.Repeat([]byte{byte(i)}, 1<<(4*i)) // up to a MiB
		held := make(chan *servertest.Response, 1)
		query := "?wait=20&order=asc"
		if last != "" {
			query = "?wait=20&since_id=" + last
		}
		go func() {
			held <- to(1).Do(t, servertest.Request{Path: "/workspaces/" + w.ID + "/activity" + query, Token: w.Token})
		}()
		var body bytes.Buffer
		form := multipart.NewWriter(&body)
		part, _ := form.CreateFormFile("files", "a.bin") // a buffer takes everything
		_, _ = part.Write(content)
		_ = form.Close()
		if r := to(0).Do(t, servertest.Request{Method: http.MethodPost, Path: "/workspaces/" + w.ID + "/chat/uploads", Token: w.Token,
			Header: http.Header{"Content-Type": {form.FormDataContentType()}}, Body: &body}); r.Status != http.StatusOK {
			t.Fatalf("upload: %d %s", r.Status, r.Body)
		}
		var rows []struct {
			ID   string
			Body struct {
				File string `json:"file_id"`
			} `json:"request_body"`
		}
		answered := time.Now()
		(<-held).JSON(t, &rows)
		if waited += time.Since(answered); len(rows) != 1 {
			t.Fatalf("poll: %d rows", len(rows))
		}
		last = rows[0].ID
		file := "/workspaces/" + w.ID + "/pending-uploads/" + rows[0].Body.File
		if r := to(2).Do(t, servertest.Request{Path: file + "/content", Token: w.Token}); !bytes.Equal(r.Body, content) {
			t.Errorf("fetch: %d, %d bytes that are not those sent", r.Status, len(r.Body))
		}
		if r := to(i).Do(t, servertest.Request{Method: http.MethodPost, Path: file + "/ack", Token: w.Token}); strings.TrimSpace(string(r.Body)) != `{"acked":true}` {
			t.Errorf("ack: %d %s", r.Status, r.Body)
		}
		if r := to(i+1).Do(t, servertest.Request{Path: file, Token: w.Token}); !strings.Contains(string(r.Body), `"state":"acked"`) {
			t.Errorf("show: %d %s", r.Status, r.Body)
		}
	}
	if waited > 6*time.Second { // without a notification a replica finds the row after about 2.25 s
		t.Errorf("held polls were answered %v after their uploads", waited)
	}
}

// followCursor sends messages to two workspaces through the balancer, six writers at once, while four pollers of each
// follow its cursor. Planted fault: the cursor's number from a sequence.
func followCursor(t *testing.T, c *testcluster.Cluster) {
	const writers, each, pollers = 6, 80, 4
	for range 2 {
		w := platformAt(c.URL).Create(t, "poll", "")
		var writing, polling sync.WaitGroup
		for i := range writers {
			writing.Go(func() {
				for k := range each {
					body := fmt.Sprintf(`{"jsonrpc":"2.0","method":"m%d-%d"}`, i, k)
					r := platformAt(c.URL).Do(t, servertest.Request{Method: http.MethodPost, Path: "/workspaces/" + w.ID + "/a2a", Token: w.Token,
						Header: http.Header{"Content-Type": {"application/json"}}, Body: strings.NewReader(body)})
					if r.Status != http.StatusOK {
						t.Errorf("message: %d %s", r.Status, r.Body)
					}
				}
			})
		}
		for p := range pollers {
			polling.Go(func() {
				seen, last := map[string]int{}, ""
				for deadline := time.Now().Add(2 * testTimeout); len(seen) < writers*each && time.Now().Before(deadline); {
					query := fmt.Sprintf("?wait=5&limit=%d&order=asc", 1+6*p)
					if last != "" {
						query = fmt.Sprintf("?wait=5&limit=%d&since_id=%s", 1+6*p, last)
					}
					var rows []struct{ ID, Method string }
					r := platformAt(c.URL).Do(t, servertest.Request{Path: "/workspaces/" + w.ID + "/activity" + query, Token: w.Token})
					if err := json.Unmarshal(r.Body, &rows); err != nil {
						t.Errorf("poll: %d %s", r.Status, r.Body)
						return
					}
					for _, row := range rows {
						last = row.ID
						if seen[row.Method]++; seen[row.Method] > 1 {
							t.Errorf("%s came twice", row.Method)
						}
					}
				}
				if len(seen) != writers*each {
					t.Errorf("a poller saw %d of %d rows", len(seen), writers*each)
				}
			})
		}
		writing.Wait()
		polling.Wait()
	}
}

// roll replaces all replicas under load. Planted fault: a replica that neither delays its stop nor waits for requests
// in flight. Both must be planted, because either one alone fails no request: HAProxy sends a request whose connection
// was refused to another replica, and a replica that got no request for 4 s has none in flight.
func roll(t *testing.T, c *testcluster.Cluster) {
	f := startTraffic(t, c.URL, 6)
	f.awaitSuccesses(t, 100)
	begun, before := time.Now(), f.successes()
	if err := c.Roll(t.Context(), binary); err != nil {
		t.Fatal(err)
	}
	t.Logf("replaced in %s, during %d requests", time.Since(begun).Round(100*time.Millisecond), f.successes()-before)
	f.awaitSuccesses(t, 100)
	_, failed := f.end(t)
	for _, failure := range failed {
		t.Errorf("after %s: %s", failure.end.Sub(begun).Round(time.Millisecond), failure.what)
	}
}

// detectionDelay is the time that HAProxy may take, on a busy machine, to process the kernel's report that its
// connections to a replica are closed. Requests that it sends on one of them until then fail with that replica.
const detectionDelay = 200 * time.Millisecond

// kill kills one replica, three times. Requests that start afterwards go to the others, even before HAProxy's next
// health check, which comes up to 2 s later. Planted fault: no redispatch in haproxy.cfg.
func kill(t *testing.T, c *testcluster.Cluster) {
	f := startTraffic(t, c.URL, 6)
	type moment struct{ begun, end time.Time }
	var kills []moment
	for i, r := range c.Replicas {
		f.awaitSuccesses(t, 100)
		killed := moment{begun: time.Now()}
		r.Kill()
		// HAProxy has one thread: when it answers this, it has processed what the kernel reported before.
		if err := c.Balancer.Await(t.Context(), c.Replicas[(i+1)%len(c.Replicas)].Name, testcluster.Up); err != nil {
			t.Fatal(err)
		}
		killed.end = time.Now()
		kills = append(kills, killed)
		f.awaitSuccesses(t, 100)
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		if err := c.Await(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	_, failed := f.end(t)
	for _, failure := range failed {
		inFlight := false
		for _, k := range kills {
			inFlight = inFlight || failure.begun.Before(k.end.Add(detectionDelay)) && failure.end.After(k.begun)
		}
		if !inFlight || strings.Contains(failure.what, "not JSON") {
			t.Errorf("at %s, for %s: %s", failure.begun.Format("05.000"), failure.end.Sub(failure.begun), failure.what)
		}
	}
	if len(failed) > len(kills)*2*6 {
		t.Errorf("%d requests failed: more than were in flight", len(failed))
	}
}

// freeze stops a replica's process until HAProxy has noticed, and resumes it. Its requests in flight are answered late.
func freeze(t *testing.T, c *testcluster.Cluster) {
	f := startTraffic(t, c.URL, 6)
	f.awaitSuccesses(t, 100)
	r := c.Replicas[1]
	r.Signal(syscall.SIGSTOP)
	err := c.Balancer.Await(contextWithTimeout(t, testTimeout), r.Name, testcluster.Down)
	for range 20 { // the other replicas serve
		platformAt(c.URL).Create(t, "poll", "")
	}
	r.Signal(syscall.SIGCONT)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Await(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	_, failed := f.end(t)
	for _, failure := range failed {
		t.Errorf("at %s, for %s: %s", failure.begun.Format("05.000"), failure.end.Sub(failure.begun), failure.what)
	}
}
