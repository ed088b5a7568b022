package pendinguploads_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/objectstore"
	"github.com/molecule-ai/platform/internal/objectstore/s3test"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// proxy stands between the platform and an S3 server. fault answers a request in the server's place, or
// returns false.
type proxy struct {
	*httptest.Server
	fault  atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	broken atomic.Int64 // faults so far
}

func newProxy(t *testing.T, server *s3test.Server) *proxy {
	t.Helper()
	target, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // the signature covers it
	}}
	p := &proxy{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault := p.fault.Load(); fault != nil && (*fault)(w, r) {
			p.broken.Add(1)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(p.CloseClientConnections)
	t.Cleanup(p.Close)
	return p
}

func (p *proxy) set(fault func(http.ResponseWriter, *http.Request) bool) { p.fault.Store(&fault) }

// A server that refuses connections or credentials fails uploads and reads. A file that cannot be read for
// that is neither missing nor truncated. When the server is back, every file can be read and what failed
// is swept. Planted: any error of the store taken for a missing object.
func TestObjectStorage_S3ThatRefusesIsAnErrorUntilItDoesNot(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]func(*testing.T, *s3test.Server){
		"connections": func(_ *testing.T, s *s3test.Server) { s.Stop() },
		"credentials": func(t *testing.T, s *s3test.Server) { s.Restart(t, "another-secret-that-is-not-known") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := s3test.Start(t)
			r := newRig(t, server.BucketURL(t, server.URL))
			staged, err := r.stageSizes(t.Context(), "", mib)
			if err != nil {
				t.Fatal(err)
			}
			_, c, err := r.Open(t.Context(), workspaceID, staged[0].ID)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			refuse(t, server)
			if again, err := r.stageSizes(t.Context(), "key", mib, 10); err == nil {
				t.Errorf("staged %d files", len(again))
			}
			if n, err := c.Read(make([]byte, 10)); n != 0 || err == nil || err == io.EOF || errors.Is(err, pendinguploads.ErrTruncated) {
				t.Errorf("read %d bytes, %v", n, err)
			}
			if err := r.sweepGarbage(t); err == nil {
				t.Error("the sweep reports success for objects that it could not delete")
			}
			server.Restart(t, s3test.Secret)
			mustRead(t, r, staged[0])
			if _, err := r.stageSizes(t.Context(), "key", mib, 10); err != nil {
				t.Errorf("staged again: %v", err)
			}
			if err := r.sweepGarbage(t); err != nil {
				t.Error(err)
			}
			wantStored(t, r, 2)
		})
	}
}

// wantStored checks that there are so many objects, each with a row and a file.
func wantStored(t *testing.T, r *rig, want int) {
	t.Helper()
	var url, namespace string
	if err := r.db.QueryRow(`SELECT url, namespace FROM upload_stores`).Scan(&url, &namespace); err != nil {
		t.Fatal(err)
	}
	store, err := objectstore.Open(t.Context(), url, uuid.MustParse(namespace))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	stored := 0
	if err := store.List(t.Context(), func(objectstore.Object) error { stored++; return nil }); err != nil {
		t.Fatal(err)
	}
	var all, intents, claimed int
	if err := r.db.QueryRow(sqlCountObjects).Scan(&all, &intents, &claimed); err != nil || all != want || claimed != want || stored != want {
		t.Errorf("%d objects, %d rows, %d claimed (%v); want %d", stored, all, claimed, err, want)
	}
}

// One response of 500 is retried. Many of them are an error, and nothing is staged. Planted: the error of
// a PUT ignored.
func TestObjectStorage_S3ThatReturns500IsRetried(t *testing.T) {
	t.Parallel()
	server := s3test.Shared(t)
	p := newProxy(t, server)
	r := newRig(t, server.BucketURL(t, p.URL))
	fail := func(times int64) func(http.ResponseWriter, *http.Request) bool {
		end := p.broken.Load() + times
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || p.broken.Load() >= end {
				return false
			}
			_, _ = io.Copy(io.Discard, r.Body)
			http.Error(w, "", http.StatusInternalServerError)
			return true
		}
	}
	p.set(fail(1))
	staged, err := r.stageSizes(t.Context(), "", mib)
	if err != nil || p.broken.Load() != 1 {
		t.Fatalf("%v after %d answers of 500", err, p.broken.Load())
	}
	mustRead(t, r, staged[0])
	p.set(fail(1000))
	if staged, err := r.stageSizes(t.Context(), "", mib); err == nil {
		t.Errorf("staged %d files", len(staged))
	}
	wantVisible(t, r, 1)
	p.set(func(http.ResponseWriter, *http.Request) bool { return false })
	if err := r.sweepGarbage(t); err != nil {
		t.Error(err)
	}
	wantStored(t, r, 1)
}

func wantVisible(t *testing.T, r *rig, want int) {
	t.Helper()
	var files, rows, reservations int
	if err := r.db.QueryRow(sqlCountAll).Scan(&files, &rows, &reservations); err != nil || files != want || rows != want || reservations != 0 {
		t.Errorf("%d files, %d inbox rows, %d reservations (%v); want %d", files, rows, reservations, err, want)
	}
}

// An upload waits for a slow server until its context ends, and holds no connection to the database.
func TestObjectStorage_S3ThatIsSlowHoldsNoConnection(t *testing.T) {
	t.Parallel()
	server := s3test.Shared(t)
	p := newProxy(t, server)
	r := newRig(t, server.BucketURL(t, p.URL))
	waits := make(chan struct{}, 8)
	p.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body)
		waits <- struct{}{}
		<-r.Context().Done()
		return true
	})
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	go func() {
		<-waits
		if n := r.staging.Stats().InUse + r.db.Stats().InUse; n != 0 {
			t.Errorf("%d connections are in use", n)
		}
		cancel()
	}()
	if staged, err := r.stageSizes(ctx, "", mib); !errors.Is(err, context.Canceled) {
		t.Errorf("staged %d files, %v", len(staged), err)
	}
	r.mustBeTraceless(t)
}

// A request that stalls, before the response or within it, is repeated. If that stalls too, it is an
// error. Planted: no stall timeout.
func TestObjectStorage_S3ThatStallsIsRetried(t *testing.T) {
	t.Parallel()
	server := s3test.Shared(t)
	p := newProxy(t, server)
	r := newRig(t, server.BucketURL(t, p.URL))
	r.SetStallTimeout(time.Second)
	staged, err := r.stageSizes(t.Context(), "", mib)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	stall := func(times int64, head bool) {
		asked.Store(0)
		p.set(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || asked.Add(1) > times {
				return false
			}
			if head {
				w.Header().Set("Content-Length", strconv.Itoa(mib))
				w.WriteHeader(http.StatusOK)
				_ = http.NewResponseController(w).Flush()
			}
			<-r.Context().Done()
			return true
		})
	}
	stall(1, false)
	mustRead(t, r, staged[0])
	stall(2, true)
	mustRead(t, r, staged[0])
	stall(1000, true)
	_, c, err := r.Open(t.Context(), workspaceID, staged[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := c.Read(make([]byte, 10)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// A write that the store does not take is cancelled and sent once more. If the store stalls again, staging returns an
// error long before writeTimeout. Planted: no bound on a write; no second attempt; a second one from where the first ended.
func TestObjectStorage_S3ThatStallsOnWritesIsRetriedOnce(t *testing.T) {
	t.Parallel()
	server := s3test.Shared(t)
	p := newProxy(t, server)
	r := newRig(t, server.BucketURL(t, p.URL))
	r.SetStallTimeout(time.Second)
	var puts atomic.Int64
	hang := func(times int64) {
		puts.Store(0)
		p.set(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || puts.Add(1) > times {
				return false
			}
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			return true
		})
	}
	hang(1)
	staged, err := r.stageSizes(t.Context(), "", 2*mib)
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, r, staged[0])
	hang(1000)
	begun := time.Now()
	if _, err := r.stageSizes(t.Context(), "", 2*mib); err == nil || !strings.Contains(err.Error(), "stalled") {
		t.Errorf("staged in a store that takes nothing: %v", err)
	}
	if took := time.Since(begun); puts.Load() != 2 || took > 30*time.Second {
		t.Errorf("%d attempts in %v", puts.Load(), took)
	}
}

// When the response breaks off, the rest is requested from the present offset.
func TestObjectStorage_S3ThatBreaksOffIsResumed(t *testing.T) {
	t.Parallel()
	server := s3test.Shared(t)
	p := newProxy(t, server)
	r := newRig(t, server.BucketURL(t, p.URL))
	staged, err := r.stageSizes(t.Context(), "", 2*mib+1)
	if err != nil {
		t.Fatal(err)
	}
	target := strings.TrimPrefix(p.URL, "http://")
	var asked atomic.Int64
	p.set(func(w http.ResponseWriter, request *http.Request) bool {
		if request.Method != http.MethodGet || asked.Add(1) > 2 {
			return false
		}
		request.Host = target
		forward := &httputil.ReverseProxy{Rewrite: func(o *httputil.ProxyRequest) {
			o.SetURL(&url.URL{Scheme: "http", Host: strings.TrimPrefix(server.URL, "http://")})
			o.Out.Host = o.In.Host
		}}
		forward.ServeHTTP(&breakingWriter{w, 600_000}, request)
		return true
	})
	mustRead(t, r, staged[0])
	if asked.Load() != 3 {
		t.Errorf("broken off twice, requested %d times", asked.Load())
	}
}

// breakingWriter cuts the connection after a number of bytes.
type breakingWriter struct {
	http.ResponseWriter
	left int
}

func (w *breakingWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		panic(http.ErrAbortHandler)
	}
	return w.ResponseWriter.Write(b)
}

// Large objects are written in parts. A multipart upload that fails is aborted. Planted: no abort; the
// last part left out.
func TestObjectStorage_S3UploadsThatFailAreAborted(t *testing.T) {
	t.Parallel()
	server := s3test.Shared(t)
	p := newProxy(t, server)
	storeURL := server.BucketURL(t, p.URL)
	store, err := objectstore.Open(t.Context(), storeURL, uuid.New())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	const size = 17 << 20
	if err := store.Write(t.Context(), uuid.New(), size, strings.NewReader(strings.Repeat("x", size))); err != nil {
		t.Fatal(err)
	}
	p.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("partNumber") != "2" {
			return false
		}
		http.Error(w, "", http.StatusForbidden)
		return true
	})
	if err := store.Write(t.Context(), uuid.New(), size, strings.NewReader(strings.Repeat("x", size))); err == nil || p.broken.Load() == 0 {
		t.Errorf("%v after %d refusals", err, p.broken.Load())
	}
	bucket := strings.TrimPrefix(storeURL[:strings.Index(storeURL, "?")], "s3://")
	left, err := server.Client().ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil || len(left.Uploads) != 0 {
		t.Errorf("%d unfinished uploads (%v)", len(left.Uploads), err)
	}
	count := 0
	if err := store.List(t.Context(), func(o objectstore.Object) error { count++; return nil }); err != nil || count != 1 {
		t.Errorf("%d objects (%v), want the first", count, err)
	}
}

// A signed URL returns the bytes without a token, as a download.
func TestObjectStorage_S3SignedURLsNeedNoToken(t *testing.T) {
	t.Parallel()
	r := newRig(t, s3test.BucketURL(t))
	staged, err := r.stageSizes(t.Context(), "", mib)
	if err != nil {
		t.Fatal(err)
	}
	_, link, err := r.SignedURL(t.Context(), workspaceID, staged[0].ID)
	if err != nil || link == "" {
		t.Fatal(link, err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, link, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK || string(body) != string(content(mib)) ||
		answer.Header.Get("Content-Type") != "application/octet-stream" || answer.Header.Get("Content-Disposition") != "attachment" {
		t.Errorf("%d, %d bytes, %v, %v", answer.StatusCode, len(body), answer.Header, err)
	}
	if expires := request.URL.Query().Get("X-Amz-Expires"); expires != "120" {
		t.Errorf("good for %s seconds", expires)
	}
}
