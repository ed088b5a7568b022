package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Planted faults: exit code 0 for every status; /health instead of /readyz; ADDR ignored.
func TestReady_ExitCodeIsThatOfReadyz(t *testing.T) {
	t.Parallel()
	p := serveOn(t, newDatabase(t))
	addr := strings.TrimPrefix(p.url, "http://")
	r := execute(t, newFolder(t), []string{"ADDR=" + addr}, "ready")
	if r.code != 0 || !strings.Contains(r.stdout, `"schema_version":`) || r.stderr != "" {
		t.Errorf("ready: exit code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}

	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"error":"no database"}`))
	}))
	t.Cleanup(broken.Close)
	r = execute(t, newFolder(t), []string{"ADDR=" + broken.Listener.Addr().String()}, "ready")
	if r.code != 1 || r.stdout != "" || r.stderr != `platform: not ready: {"error":"no database"}`+"\n" {
		t.Errorf("not ready: exit code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}

	r = execute(t, newFolder(t), []string{"ADDR=" + closedAddr, "HTTP_PROXY=" + broken.URL}, "ready")
	if r.code != 1 || !strings.Contains(r.stderr, "platform: the platform does not answer: ") {
		t.Errorf("nothing listens: exit code %d, stderr %q", r.code, r.stderr)
	}
}
