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

// binary is the platform as its users run it. It is built without the race detector: what is
// tested here is the program from outside, and how much memory it takes.
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
	// Without the state of the repository, which is not always there to be read.
	if output, err := exec.Command("go", "build", "-buildvcs=false", "-o", binary, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the platform: %v\n%s", err, output)
		return 1
	}
	return pgtest.Run(m)
}

// newFolder makes an empty folder below one that every user may pass through, for as root
// PostgreSQL runs as another one.
func newFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "platform-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A PostgreSQL whose platform was killed writes for a moment longer.
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
