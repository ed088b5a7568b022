package testcluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

// backOff is a client's pause after a failure.
const backOff = 50 * time.Millisecond

// traffic is the usual load of workspaces: uploads, each sent once and without a key, and a poller that follows its
// cursor with held polls, downloads and acknowledges.
type traffic struct {
	base string
	http *http.Client
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu         sync.Mutex
	workspaces []*inbox
	requests   int
	failed     []failure
}

// An inbox is what a workspace's sender and poller have seen.
type inbox struct {
	servertest.Workspace
	answered map[string]bool // by name of a sent file: whether the answer was 200
	seen     map[string]int  // by name of a file: number of rows
	last     string          // the cursor
	seq      int64
}

// A failure is a request that failed.
type failure struct {
	what       string
	begun, end time.Time
}

// startTraffic starts the traffic of n workspaces.
func startTraffic(t *testing.T, base string, n int) *traffic {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	f := &traffic{base: base, stop: stop, http: &http.Client{Timeout: testTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	t.Cleanup(func() { stop(); f.wg.Wait(); f.http.CloseIdleConnections() })
	for i := range n {
		w := &inbox{Workspace: platformAt(base).Create(t, "poll", ""), answered: map[string]bool{}, seen: map[string]int{}}
		f.workspaces = append(f.workspaces, w)
		f.wg.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				f.upload(w, fmt.Sprintf("w%d-%d.txt", i, k))
			}
		})
		f.wg.Go(func() {
			for ctx.Err() == nil {
				f.poll(w, 2)
			}
		})
	}
	return f
}

// end stops the uploads, reads all inboxes to their end, and checks that every file answered with 200 is there once,
// and no other more than once.
func (f *traffic) end(t *testing.T) (requests int, failed []failure) {
	t.Helper()
	f.stop()
	f.wg.Wait()
	unknown := 0
	for _, w := range f.workspaces {
		for more := true; more; {
			more = f.poll(w, 0) > 0
		}
		for name, ok := range w.answered {
			if n := w.seen[name]; n > 1 || ok && n == 0 {
				t.Errorf("%s: answered with 200: %v; announced %d times", name, ok, n)
			}
			if !ok {
				unknown++
			}
		}
	}
	t.Logf("%d requests, %d failed; %d uploads with unknown outcome", f.requests, len(f.failed), unknown)
	return f.requests, f.failed
}

// do sends a request and returns the body of a 200.
func (f *traffic) do(w *inbox, method, path, contentType string, body []byte) ([]byte, bool) {
	begun := time.Now()
	answer, err := f.exchange(w, method, path, contentType, body)
	f.mu.Lock()
	f.requests++
	if err != nil {
		f.failed = append(f.failed, failure{fmt.Sprintf("%s %s: %v", method, path, err), begun, time.Now()})
	}
	f.mu.Unlock()
	if err != nil {
		time.Sleep(backOff)
	}
	return answer, err == nil
}

func (f *traffic) exchange(w *inbox, method, path, contentType string, body []byte) ([]byte, error) {
	request, err := http.NewRequest(method, f.base+"/workspaces/"+w.ID+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+w.Token)
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	answer, err := f.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%d %s", answer.StatusCode, content)
		if !json.Valid(content) {
			err = fmt.Errorf("%w, which is not JSON", err)
		}
	}
	return content, err
}

func (f *traffic) upload(w *inbox, name string) {
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	part, _ := form.CreateFormFile("files", name) // a buffer takes everything
	_, _ = io.WriteString(part, name)
	_ = form.Close()
	_, ok := f.do(w, http.MethodPost, "/chat/uploads", form.FormDataContentType(), body.Bytes())
	f.mu.Lock()
	defer f.mu.Unlock()
	w.answered[name] = ok
}

// poll requests the rows after the cursor, handles them, and returns their number. Only the workspace's poller calls
// it.
func (f *traffic) poll(w *inbox, wait int) int {
	path := fmt.Sprintf("/activity?limit=20&wait=%d", wait)
	if w.last == "" {
		path += "&order=asc"
	} else {
		path += "&since_id=" + w.last
	}
	page, ok := f.do(w, http.MethodGet, path, "", nil)
	var rows []struct {
		ID   string `json:"id"`
		Seq  int64  `json:"seq"`
		Body struct {
			Name string `json:"name"`
			ID   string `json:"file_id"`
		} `json:"request_body"`
	}
	if !ok || json.Unmarshal(page, &rows) != nil {
		return 0
	}
	for _, r := range rows {
		if r.Seq != w.seq+1 {
			f.fail(fmt.Sprintf("row %d comes after row %d", r.Seq, w.seq))
		}
		w.last, w.seq = r.ID, r.Seq
		w.seen[r.Body.Name]++
		file := "/pending-uploads/" + r.Body.ID
		if content, ok := f.do(w, http.MethodGet, file+"/content", "", nil); ok && string(content) != r.Body.Name {
			f.fail(fmt.Sprintf("%s has the content %q", r.Body.Name, content))
		}
		f.do(w, http.MethodPost, file+"/ack", "", nil)
	}
	return len(rows)
}

// fail records a failure that no fault excuses.
func (f *traffic) fail(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = append(f.failed, failure{what: what, begun: time.Now(), end: time.Now()})
}

// successes returns the number of successful requests so far.
func (f *traffic) successes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests - len(f.failed)
}

// awaitSuccesses waits for n more successful requests.
func (f *traffic) awaitSuccesses(t *testing.T, n int) {
	t.Helper()
	for begun, first := time.Now(), f.successes(); f.successes() < first+n; time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > testTimeout {
			t.Fatalf("only %d successful requests in %s", f.successes()-first, testTimeout)
		}
	}
}
