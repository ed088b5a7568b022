package embeddedpg

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestGate_NeverOpensIfTheOwnerDiesFirst(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	marker := filepath.Join(t.TempDir(), "ran")
	cmd, gateEnd, err := startShell(identity{}, log.file, gate, "/usr/bin/touch", marker)
	if err != nil {
		t.Fatal(err)
	}
	gateEnd.Close()
	_ = cmd.Wait()
	if exists(marker) {
		t.Error("the program ran")
	}
}

// After a process has exited, its id may be another process's.
func TestWatchdog_KillsNothingAfterTheProcessHasExited(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	unrelated, stdin, err := startShell(identity{}, log.file, "cat")
	if err != nil {
		t.Fatal(err)
	}
	dog, dogInput, err := startShell(identity{}, log.file, watchdog, strconv.Itoa(unrelated.Process.Pid), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dogInput.WriteString("ended\n"); err != nil {
		t.Fatal(err)
	}
	dogInput.Close()
	if err := dog.Wait(); err != nil {
		t.Errorf("the watchdog: %v", err)
	}
	stdin.Close()
	if err := unrelated.Wait(); err != nil {
		t.Errorf("the unrelated process: %v", err)
	}
}

// Ctrl-C is sent to the foreground process group of the terminal.
func TestSpawn_ChildrenDoNotGetCtrlC(t *testing.T) {
	t.Parallel()
	c, err := spawn(identity{}, newLog(t), socketDir{}, "/bin/sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	defer c.signal(syscall.SIGKILL)
	for _, pid := range []int{c.pid(), c.watchdog.Process.Pid} {
		group, err := syscall.Getpgid(pid)
		if err != nil {
			t.Fatal(err)
		}
		if group == syscall.Getpgrp() {
			t.Errorf("process %d is in the group of its owner", pid)
		}
	}
}

func TestSpawn_DoesNotPassOnThePlatformsEnvironment(t *testing.T) {
	t.Setenv("ADMIN_TOKEN", "secret")
	t.Setenv("PGDATA", "/elsewhere")
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	log := newLog(t)
	c, err := spawn(identity{}, log, socketDir{}, "/usr/bin/env")
	if err != nil {
		t.Fatal(err)
	}
	<-c.exited
	environment, err := os.ReadFile(log.file.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(environment), "LC_ALL=C\n") {
		t.Errorf("messages are not in plain English: %s", environment)
	}
	for _, name := range []string{"ADMIN_TOKEN", "PGDATA"} {
		if strings.Contains(string(environment), name) {
			t.Errorf("%s is passed on", name)
		}
	}
}

func TestSpawn_EndsAProgramThatIgnoresTheInterrupt(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	c, err := spawn(identity{}, log, socketDir{}, "/bin/sh", "-c", "trap '' INT; echo ready; while :; do sleep 60; done")
	if err != nil {
		t.Fatal(err)
	}
	ended := time.AfterFunc(20*time.Second, func() { c.signal(syscall.SIGKILL) })
	waitFor(t, 5*time.Second, "the program's first words", func() bool { return log.lastLine() == "ready" })
	c.interrupt()
	if !ended.Stop() {
		t.Error("it did not end by itself")
	}
}

func TestServerLog_ReturnsTheLastError(t *testing.T) {
	t.Parallel()
	for output, want := range map[string]string{
		"":                              "",
		"one\n\ntwo\n \n":               "two",
		"LOG:  a\nFATAL:  why\nHINT: h": "why",
		"initdb: error: full\nremoving": "full",
		strings.Repeat("x", 2*logTail) + "\nFATAL:  late\n": "late",
	} {
		log := newLog(t)
		if _, err := log.file.WriteString("FATAL:  of another run\n"); err != nil {
			t.Fatal(err)
		}
		log.mark()
		if _, err := log.file.WriteString(output); err != nil {
			t.Fatal(err)
		}
		if got := log.lastLine(); got != want {
			t.Errorf("of %.40q it returns %q, want %q", output, got, want)
		}
	}
}

func TestServerLog_IsRotatedAboveTheMaximumSize(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	long := bytes.Repeat([]byte("x"), maxLogBytes+1)
	for _, c := range []struct {
		size    int
		rotated bool
	}{{maxLogBytes, false}, {maxLogBytes + 1, true}} {
		if err := os.WriteFile(logPath(dir), long[:c.size], 0o600); err != nil {
			t.Fatal(err)
		}
		log, err := openServerLog(dir)
		if err != nil {
			t.Fatal(err)
		}
		log.close()
		if exists(logPath(dir)+".1") != c.rotated {
			t.Errorf("a log of %d bytes was rotated: %t, want %t", c.size, !c.rotated, c.rotated)
		}
	}
}

func newLog(t *testing.T) *serverLog {
	t.Helper()
	log, err := openServerLog(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(log.close)
	return log
}
