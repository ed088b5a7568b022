package embeddedpg

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// owner is another process that owns a server.
type owner struct {
	cmd                *exec.Cmd
	postgres, watchdog int
}

func startOwner(t *testing.T, dir string) *owner {
	t.Helper()
	o, stdout := launchOwner(t, dir)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(line, &o.postgres, &o.watchdog); err != nil {
		t.Fatalf("the owner printed %q: %v", line, err)
	}
	return o
}

// launchOwner does not wait for the server to start.
func launchOwner(t *testing.T, dir string, environment ...string) (*owner, io.Reader) {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o := &owner{cmd: exec.Command(executable)}
	o.cmd.Env = append(append(os.Environ(), ownerVariable+"="+dir), environment...)
	o.cmd.Stderr = os.Stderr
	stdin, err := o.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := o.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = o.cmd.Wait()
	})
	return o, stdout
}

func (o *owner) kill(t *testing.T) {
	t.Helper()
	if err := o.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = o.cmd.Wait()
}

func TestKill_OfTheOwnerEndsPostgreSQL(t *testing.T) {
	t.Parallel()
	o := startOwner(t, newDataDir(t))
	if gone(o.postgres) || gone(o.watchdog) {
		t.Fatal("the server is not running")
	}
	o.kill(t)
	waitGone(t, 10*time.Second, o.postgres, o.watchdog)
}

func TestKill_OfTheOwnerAllowsTheNextStartAtOnce(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	for range 2 {
		o := startOwner(t, dir)
		o.kill(t)
		s := mustStart(t, dir)
		if !gone(o.postgres) {
			t.Error("two servers on one folder")
		}
		mustExec(t, open(t, s), "CREATE TABLE IF NOT EXISTS visits (id int)")
		mustStop(t, s)
	}
}

// If the watchdog was killed too, the next start ends the old server.
func TestKill_OfOwnerAndWatchdogLeavesTheServerToTheNextStart(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	o := startOwner(t, dir)
	watchdog, err := os.FindProcess(o.watchdog)
	if err != nil {
		t.Fatal(err)
	}
	if err := watchdog.Kill(); err != nil {
		t.Fatal(err)
	}
	o.kill(t)
	if gone(o.postgres) {
		t.Fatal("PostgreSQL has exited: the test proves nothing")
	}
	s := mustStart(t, dir)
	if !gone(o.postgres) {
		t.Error("two servers on one folder")
	}
	if one := query[int](t, open(t, s), "SELECT 1"); one != 1 {
		t.Error("no answer")
	}
}

// A first start is killed while initdb is running.
func TestKill_DuringInitdbLeavesAUsableFolder(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	bin := filepath.Join(filepath.Dir(dir), "bin")
	fakeInstallation(t, bin, "postgres (PostgreSQL) 99.1")
	half := "#!/bin/sh\necho 99 > \"$2/PG_VERSION\"\necho $$ > \"$2/pid\"\nwhile :; do sleep 1; done\n"
	if err := writeScript(filepath.Join(bin, "initdb"), []byte(half)); err != nil {
		t.Fatal(err)
	}
	o, _ := launchOwner(t, dir, "PATH="+bin+":"+os.Getenv("PATH"))
	var initdb int
	waitFor(t, 10*time.Second, "initdb's half", func() bool {
		found, _ := filepath.Glob(filepath.Join(dir, "*", "pid"))
		if len(found) != 1 {
			return false
		}
		content, err := os.ReadFile(found[0])
		if err != nil {
			return false
		}
		_, err = fmt.Sscan(string(content), &initdb)
		return err == nil
	})
	o.kill(t)

	s := mustStart(t, dir)
	if one := query[int](t, open(t, s), "SELECT 1"); one != 1 {
		t.Error("no answer")
	}
	if left, _ := filepath.Glob(dataPath(dir) + ".*-*"); len(left) > 0 {
		t.Errorf("the incomplete cluster is left: %s", left)
	}
	waitGone(t, 10*time.Second, initdb)
}

// socketFolderOf returns the socket's folder from the arguments of a server.
func socketFolderOf(t *testing.T, pid int) string {
	t.Helper()
	command, _ := commandLine(pid)
	_, rest, _ := strings.Cut(command, "unix_socket_directories=")
	path, _, found := strings.Cut(rest, " ")
	if !found {
		t.Fatalf("no socket folder in %q", command)
	}
	return path
}

func TestKill_RemovesTheTemporarySocketFolder(t *testing.T) {
	t.Parallel()
	o := startOwner(t, newDataDir(t)+"/a,b")
	before := socketFolderOf(t, o.postgres)
	if !exists(before) {
		t.Fatalf("%s does not exist", before)
	}
	o.kill(t)
	waitGone(t, 10*time.Second, o.postgres, o.watchdog)
	if exists(before) {
		t.Errorf("%s is left", before)
	}
}
