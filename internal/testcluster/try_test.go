package testcluster_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/server/servertest"
	"github.com/molecule-ai/platform/internal/testcluster"
)

// `make cluster` serves what it prints, and leaves nothing behind after Ctrl-C or kill -9. Planted faults: no watchdog
// for the replicas; no cleaner.
func TestTryCluster_LeavesNothingBehind(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "trycluster")
	if output, err := exec.Command("go", "build", "-buildvcs=false", "-o", program, "../../cmd/trycluster").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	for name, sig := range map[string]syscall.Signal{"Ctrl-C": syscall.SIGINT, "kill -9": syscall.SIGKILL} {
		addr, err := testcluster.FreeAddr()
		if err != nil {
			t.Fatal(err)
		}
		temp, err := testcluster.NewDir() // as the program's TMPDIR, so that what it leaves there is its own
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(temp) })
		var out tail
		cmd := exec.Command(program, "-platform", binary, "-proxy", proxyFile, "-addr", addr)
		cmd.Env = append(os.Environ(), "TMPDIR="+temp)
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		await(t, "the greeting: "+out.String(), func() bool { return strings.Contains(out.String(), "Ctrl-C stops") })
		if r := platformAt("http://"+addr).Do(t, servertest.Request{Path: "/readyz"}); r.Status != 200 {
			t.Errorf("readyz: %d %s", r.Status, r.Body)
		}
		pids := regexp.MustCompile(`\(process (\d+)\)`).FindAllStringSubmatch(out.String(), -1)
		if len(pids) != 3 {
			t.Errorf("%d replicas:\n%s", len(pids), out.String())
		}
		_ = cmd.Process.Signal(sig)
		if err := <-ended; (err == nil) != (sig == syscall.SIGINT) {
			t.Errorf("%s: %v\n%s", name, err, out.String())
		}
		for _, pid := range pids {
			await(t, name+" ended the replicas", func() bool { return gone(pid[1]) })
		}
		await(t, name+" ended HAProxy", func() bool {
			conn, err := net.Dial("tcp", addr)
			if err == nil {
				conn.Close()
			}
			return err != nil
		})
		await(t, name+" removed the folder", func() bool {
			left, err := filepath.Glob(filepath.Join(temp, "cluster-*"))
			return err == nil && len(left) == 0
		})
	}
}

// await waits until done.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for begun := time.Now(); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Since(begun) > testTimeout {
			t.Fatalf("after %s still not: %s", testTimeout, what)
		}
	}
}

// gone reports whether a process has exited; a zombie has.
func gone(pid string) bool {
	n, err := strconv.Atoi(pid)
	if err != nil || errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
		return err == nil
	}
	command, err := os.ReadFile("/proc/" + pid + "/cmdline")
	return err == nil && len(bytes.TrimSpace(command)) == 0
}
