package testcluster_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/server/servertest"
	"github.com/molecule-ai/platform/internal/testcluster"
)

const (
	adminToken = servertest.AdminToken

	proxyFile = "../../deploy/proxy/haproxy.cfg"

	// testTimeout bounds every wait that should take a moment.
	testTimeout = 40 * time.Second
)

// binary is the path of the compiled platform, built without the race detector.
var binary string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "platform-binary-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "platform")
	// -buildvcs=false: the git repository is not always readable.
	if output, err := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "../../cmd/platform").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the platform: %v\n%s", err, output)
		return 1
	}
	return m.Run()
}

// newDir creates a folder that PostgreSQL's user can enter.
func newDir(t *testing.T) string {
	t.Helper()
	dir, err := testcluster.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// start starts three replicas behind HAProxy, on their own PostgreSQL unless there is a databaseURL.
func start(t *testing.T, databaseURL string, env ...string) *testcluster.Cluster {
	t.Helper()
	log := &tail{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the logs of replicas and HAProxy:\n%s", log)
		}
	})
	c, err := testcluster.Start(t.Context(), testcluster.Options{
		Dir: newDir(t), Binary: binary, Replicas: 3, Proxy: proxyFile, AdminToken: adminToken, DatabaseURL: databaseURL, Log: log,
		Env: append([]string{"RATE_LIMIT=0", "PUSH_ALLOW_CIDRS=127.0.0.0/8", "LOG_LEVEL=warn"}, env...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// platformAt returns a client of the platform at url, whose calls are checked against the OpenAPI file.
func platformAt(url string) *servertest.Platform { return &servertest.Platform{URL: url} }

// contextWithTimeout returns a context that ends after limit or with the test.
func contextWithTimeout(t *testing.T, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String returns the last 8 KiB.
func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.text.String()
	return text[max(0, len(text)-8<<10):]
}
