package tracing_test

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const patience = 20 * time.Second

// receiver is a collector that accepts OTLP over HTTP.
type receiver struct {
	URL string

	mu       sync.Mutex
	requests int
	service  map[string]string
	spans    []*tracepb.Span
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{service: map[string]string{}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body := io.Reader(request.Body)
		if request.Header.Get("Content-Encoding") == "gzip" {
			body, _ = gzip.NewReader(body)
		}
		raw, err := io.ReadAll(body)
		var export collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(raw, &export)
		}
		if err != nil || request.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", request.URL, err)
		}
		r.take(&export)
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(srv.Close)
	r.URL = srv.URL
	return r
}

func (r *receiver) take(export *collector.ExportTraceServiceRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests++
	for _, resource := range export.GetResourceSpans() {
		for _, a := range resource.GetResource().GetAttributes() {
			r.service[a.GetKey()] = a.GetValue().GetStringValue()
		}
		for _, scope := range resource.GetScopeSpans() {
			r.spans = append(r.spans, scope.GetSpans()...)
		}
	}
}

// wait returns the spans by name as soon as all of the given names have arrived.
func (r *receiver) wait(t *testing.T, names ...string) map[string]*tracepb.Span {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		found := map[string]*tracepb.Span{}
		r.mu.Lock()
		for _, s := range r.spans {
			found[s.GetName()] = s
		}
		r.mu.Unlock()
		missing := ""
		for _, name := range names {
			if found[name] == nil {
				missing = name
			}
		}
		if missing == "" {
			return found
		}
		if time.Now().After(deadline) {
			t.Fatalf("no span %q among %d", missing, len(found))
		}
	}
}

func attributes(s *tracepb.Span) map[string]string {
	all := map[string]string{}
	for _, a := range s.GetAttributes() {
		all[a.GetKey()] = strings.Trim(a.GetValue().String(), `"`)
		if v := a.GetValue().GetStringValue(); v != "" {
			all[a.GetKey()] = v
		}
	}
	return all
}

const (
	uploadSpan  = "POST /workspaces/:id/chat/uploads"
	contentSpan = "GET /workspaces/:id/pending-uploads/:file_id/content"
)

// upload uploads one file, as part of a trace unless traceparent is "".
func upload(t *testing.T, p *servertest.Platform, w servertest.Workspace, traceparent string) (file string) {
	t.Helper()
	const form = "--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"secret name.txt\"\r\n\r\nsecret content\r\n--b--\r\n"
	header := http.Header{"Content-Type": {"multipart/form-data; boundary=b"}, "User-Agent": {"secret agent"}}
	if traceparent != "" {
		header.Set("Traceparent", traceparent)
	}
	r := p.Do(t, servertest.Request{Method: http.MethodPost, Path: "/workspaces/" + w.ID + "/chat/uploads?secret=query", Token: w.Token,
		Header: header, Body: strings.NewReader(form)})
	if r.Status != http.StatusOK {
		t.Fatalf("upload: %d %s", r.Status, r.Body)
	}
	var answer struct{ Files []struct{ URI string } }
	r.JSON(t, &answer)
	return answer.Files[0].URI[strings.LastIndexByte(answer.Files[0].URI, '/')+1:]
}

// Planted: no route; child spans without the request as their parent; the client's trace not continued; a
// path that is not a route as the name; the name of the file among the attributes.
func TestTraces_RequestsAreSpansWithStagingAndOpeningWithin(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	p := servertest.Start(t, func(s *config.Settings) { s.OTELEndpoint = r.URL })
	w := p.Create(t, "poll", "")
	const trace = "0af7651916cd43dd8448eb211c80319c"
	file := upload(t, p, w, "00-"+trace+"-b7ad6b7169203331-01")
	fetched := p.Do(t, servertest.Request{Path: "/workspaces/" + w.ID + "/pending-uploads/" + file + "/content", Token: w.Token})
	if fetched.Status != http.StatusOK {
		t.Fatalf("fetch: %d", fetched.Status)
	}
	p.Do(t, servertest.Request{Path: "/secret-path-" + w.Token})
	p.Do(t, servertest.Request{Method: "SECRET", Path: "/nowhere"})

	spans := r.wait(t, uploadSpan, "stage", contentSpan, "open", "HTTP")
	up, stage := spans[uploadSpan], spans["stage"]
	if hex.EncodeToString(up.GetTraceId()) != trace || hex.EncodeToString(up.GetParentSpanId()) != "b7ad6b7169203331" || up.GetKind() != tracepb.Span_SPAN_KIND_SERVER {
		t.Errorf("the caller's trace is not gone on with: %v", up)
	}
	for child, parent := range map[*tracepb.Span]*tracepb.Span{stage: up, spans["open"]: spans[contentSpan]} {
		if !bytes.Equal(child.GetParentSpanId(), parent.GetSpanId()) || !bytes.Equal(child.GetTraceId(), parent.GetTraceId()) {
			t.Errorf("%s is not within %s", child.GetName(), parent.GetName())
		}
	}
	if len(spans[contentSpan].GetParentSpanId()) != 0 {
		t.Error("a request without traceparent has a parent")
	}
	got := attributes(up)
	if got["http.route"] != "/workspaces/:id/chat/uploads" || got["http.request.method"] != "POST" ||
		!strings.Contains(got["http.response.status_code"], "200") || got["client.address"] != "127.0.0.1" {
		t.Errorf("attributes of the request: %v", got)
	}
	if got := attributes(stage); got["molecule.workspace_id"] != w.ID || !strings.Contains(got["molecule.bytes"], "14") {
		t.Errorf("attributes of stage: %v", got)
	}
	if got := attributes(spans["open"]); got["molecule.file_id"] != file {
		t.Errorf("attributes of open: %v", got)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.service["service.name"] != "molecule-platform" {
		t.Errorf("resource: %v", r.service)
	}
	for _, s := range r.spans {
		if text := strings.ToLower(s.String()); strings.Contains(text, "secret") || strings.Contains(text, w.Token) {
			t.Errorf("a span tells what it must not: %s", text)
		}
	}
}

// Planted: trace_id left out of the log lines.
func TestTraces_LogLinesNameTheTrace(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.OTELEndpoint = newReceiver(t).URL })
	w := p.Create(t, "poll", "")
	const trace = "0af7651916cd43dd8448eb211c80319c"
	upload(t, p, w, "00-"+trace+"-b7ad6b7169203331-01")
	upload(t, p, w, "")
	staged := p.Logs.Lines(t, "staged")
	if len(staged) != 2 || staged[0]["trace_id"] != trace || len(staged[1]["trace_id"].(string)) != 32 || staged[1]["trace_id"] == trace {
		t.Errorf("lines: %v", staged)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		requests := p.Logs.Lines(t, "request")
		if len(requests) == 3 { // its last line too
			if requests[1]["trace_id"] != trace {
				t.Errorf("the request's line: %v", requests[1])
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("lines: %v", requests)
		}
	}
}

// Without configuration nothing is created, sent or logged. Planted: OTEL_SDK_DISABLED ignored; traces
// that are always on.
func TestTraces_OffUnlessConfigured(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	for name, change := range map[string]func(*config.Settings){
		"not configured": func(*config.Settings) {},
		"disabled":       func(s *config.Settings) { s.OTELEndpoint, s.OTELDisabled = r.URL, "true" },
		"exported not":   func(s *config.Settings) { s.OTELEndpoint, s.OTELTracesExporter = r.URL, "none" },
	} {
		t.Run(name, func(t *testing.T) {
			p := servertest.Start(t, change)
			upload(t, p, p.Create(t, "poll", ""), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
			if strings.Contains(p.Logs.String(), "trace_id") {
				t.Error("log lines have a trace_id")
			}
		})
	}
	// The platforms have stopped, which sends the queued spans.
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.requests > 0 {
		t.Errorf("%d requests to the collector", r.requests)
	}
}

// The queued spans are sent when the platform stops. Planted: no Close.
func TestTraces_LastSpansAreSentOnStop(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	t.Run("platform", func(t *testing.T) {
		p := servertest.Start(t, func(s *config.Settings) { s.OTELEndpoint = r.URL })
		upload(t, p, p.Create(t, "poll", ""), "")
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.spans) < 3 {
		t.Errorf("%d spans, want those of two requests and of staging", len(r.spans))
	}
}

// A collector that is down, or accepts connections and never responds, costs spans and delays no request.
// Planted: each span sent while the request waits.
func TestTraces_CollectorThatIsAwayIsInNobodysWay(t *testing.T) {
	t.Parallel()
	end := make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
	t.Cleanup(hangs.Close)
	t.Cleanup(func() { close(end) })
	for name, url := range map[string]string{"away": "http://127.0.0.1:1", "hangs": hangs.URL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := servertest.Start(t, func(s *config.Settings) { s.OTELEndpoint = url })
			w := p.Create(t, "poll", "")
			start := time.Now()
			for range 3 {
				upload(t, p, w, "")
				if took := time.Since(start); took > 5*time.Second {
					t.Fatalf("uploads wait for the collector: %s", took)
				}
			}
		})
	}
}
