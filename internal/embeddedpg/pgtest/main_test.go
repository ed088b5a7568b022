package pgtest_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// childVariable says how TestOfTheChild ends, in a test binary that another test runs.
const childVariable = "PGTEST_CHILD"

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestOfTheChild(t *testing.T) {
	pgtest.New(t)
	switch os.Getenv(childVariable) {
	case "fails":
		t.Fatal("as requested")
	case "panics":
		panic("as requested")
	case "is killed":
		self, err := os.FindProcess(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if err := self.Kill(); err != nil {
			t.Fatal(err)
		}
		<-t.Context().Done()
	}
}

func TestMain_CleansUpHoweverTheRunEnds(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"passes", "fails", "panics", "is killed"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			tmp := sharedTempDir(t)
			output, err := runChild(t, tmp, end)
			if passed := err == nil; passed != (end == "passes") {
				t.Fatalf("the run ended with %v: %s", err, output)
			}
			orderly := end == "passes" || end == "fails"
			if left := waitEmpty(t, tmp, !orderly); len(left) > 0 {
				t.Errorf("left: %s", left)
			}
		})
	}
}

func TestMain_FailsTheRunIfThereIsNoServer(t *testing.T) {
	t.Parallel()
	output, err := runChild(t, filepath.Join(t.TempDir(), "missing"), "passes")
	if err == nil || !strings.Contains(output, "pgtest: create a folder for the server") {
		t.Errorf("the run ended with %v: %s", err, output)
	}
}

// sharedTempDir creates a folder that every user can enter: as root, PostgreSQL runs as another user.
func sharedTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgtest-of-pgtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func runChild(t *testing.T, tmp, end string) (output string, err error) {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, executable, "-test.run=^TestOfTheChild$")
	cmd.Env = append(os.Environ(), childVariable+"="+end, "TMPDIR="+tmp)
	content, err := cmd.CombinedOutput()
	return string(content), err
}

// waitEmpty returns what is in the folder; with wait, after there was time to clean up.
func waitEmpty(t *testing.T, dir string, wait bool) (left []string) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	retry := time.NewTicker(50 * time.Millisecond)
	defer retry.Stop()
	for {
		left, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 || !wait {
			return left
		}
		select {
		case <-deadline.C:
			return left
		case <-retry.C:
		}
	}
}
