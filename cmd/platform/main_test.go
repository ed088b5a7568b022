package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// binary is the path of the compiled platform. It is built without the race detector: the tests treat it as a black box
// and measure its memory.
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
	if output, err := exec.Command("go", "build", "-buildvcs=false", "-o", binary, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the platform: %v\n%s", err, output)
		return 1
	}
	return pgtest.Run(m)
}

// newFolder creates an empty folder in one that every user can enter: as root, PostgreSQL runs as another user.
func newFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "platform-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The PostgreSQL of a killed platform may still write for a moment.
		err := os.RemoveAll(dir)
		for late := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(late); err = os.RemoveAll(dir) {
			time.Sleep(100 * time.Millisecond)
		}
		if err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}
