package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// testTimeout bounds every wait that should take a moment. It is generous, because the machine may be busy; only a
	// failing test waits that long.
	testTimeout = 30 * time.Second

	// pollInterval is the time between two checks of a condition that nothing signals.
	pollInterval = 20 * time.Millisecond
)

// process is a running binary.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr *output
	url            string // set by serve

	exited chan struct{} // closed when it has exited and all its output was read
	err    error         // of Wait; written before exited is closed
}

// watchdogScript kills process $1 when the test binary has exited, which closes the script's standard input: after a
// panic or a timeout the test cannot do it. A line on it means that $1 has exited.
const watchdogScript = `read -r _ || kill -KILL "$1"`

// start starts the binary in dir. Of the platform's variables it has only env, and by default a free port. It is killed
// at the end of the test.
func start(t *testing.T, dir string, env []string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(binary, args...), stdout: newOutput(), stderr: newOutput(), exited: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, p.stdout, p.stderr
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir(), "ADDR=127.0.0.1:0"}, env...)
	p.cmd.WaitDelay = 5 * time.Second // if a child keeps the output open, which is a bug
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := exec.Command("/bin/sh", "-c", watchdogScript, "sh", strconv.Itoa(p.pid()))
	stdin, err := watchdog.StdinPipe()
	if err == nil {
		err = watchdog.Start()
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.exited
		if watchdog.Process != nil {
			fmt.Fprintln(stdin, "ended")
			_ = watchdog.Wait()
		}
		if t.Failed() {
			t.Logf("platform %q, stdout:\n%s\nend of stderr:\n%s", args, p.stdout, p.stderr.end())
		}
	})
	if err != nil {
		t.Fatalf("start the watchdog: %v", err)
	}
	return p
}

var servingLine = regexp.MustCompile(`"msg":"serving","addr":"([^"]+)"`)

// serve starts a platform and returns when it is ready.
func serve(t *testing.T, dir string, env ...string) *process {
	t.Helper()
	p := start(t, dir, env)
	p.url = "http://" + p.await(t, p.stderr, servingLine)
	return p
}

// result is the output and the exit code of a run.
type result struct {
	code           int
	stdout, stderr string
}

// execute runs the binary and waits for its exit.
func execute(t *testing.T, dir string, env []string, args ...string) result {
	t.Helper()
	p := start(t, dir, env, args...)
	return result{p.exit(t), p.stdout.String(), p.stderr.String()}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("signal the platform: %v", err)
	}
}

// kill kills the process.
func (p *process) kill(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGKILL)
	p.exit(t)
}

// stop stops the process with SIGINT, like Ctrl-C.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGINT)
	if code := p.exit(t); code != 0 {
		t.Fatalf("exit code %d after SIGINT", code)
	}
}

// exit waits for the exit and returns the exit code, -1 after a signal.
func (p *process) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(testTimeout):
		t.Fatalf("the platform still runs after %s", testTimeout)
	}
	if errors.Is(p.err, exec.ErrWaitDelay) {
		t.Fatal("the platform has ended, but a process that it started keeps its output open")
	}
	return p.cmd.ProcessState.ExitCode()
}

// await waits until the output has a match, and returns its first group.
func (p *process) await(t *testing.T, o *output, pattern *regexp.Regexp) string {
	t.Helper()
	deadline := time.After(testTimeout)
	for ended := false; ; {
		text, grown := o.now()
		if match := pattern.FindStringSubmatch(text); match != nil {
			return match[len(match)-1]
		}
		if ended {
			t.Fatalf("the platform ended (%v) without printing %s", p.cmd.ProcessState, pattern)
		}
		select {
		case <-grown:
		case <-p.exited:
			ended = true
		case <-deadline:
			t.Fatalf("after %s the platform has not printed %s", testTimeout, pattern)
		}
	}
}

var postgresLine = regexp.MustCompile(`"msg":"postgresql started","pid":(\d+)`)

// postgres returns the process id of the platform's private PostgreSQL.
func (p *process) postgres(t *testing.T) int {
	t.Helper()
	pid, err := strconv.Atoi(p.await(t, p.stderr, postgresLine))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// gone reports whether a process has exited; a zombie has.
func gone(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && len(command) == 0
}

// eventually waits until done returns true.
func eventually(t *testing.T, limit time.Duration, what string, done func() bool) {
	t.Helper()
	deadline := time.After(limit)
	retry := time.NewTicker(pollInterval)
	defer retry.Stop()
	for !done() {
		select {
		case <-retry.C:
		case <-deadline:
			t.Fatalf("after %s still not: %s", limit, what)
		}
	}
}

// output collects a process's output, and lets a test wait for more.
type output struct {
	mu    sync.Mutex
	b     bytes.Buffer
	grown chan struct{} // closed, and made anew, at every write
}

func newOutput() *output { return &output{grown: make(chan struct{})} }

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.grown)
	o.grown = make(chan struct{})
	return o.b.Write(p)
}

// now returns the output so far, and a channel that is closed when there is more.
func (o *output) now() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String(), o.grown
}

// end returns the end of the output, for failure messages.
func (o *output) end() string {
	text := o.String()
	return text[max(0, len(text)-4<<10):]
}

// String returns the output so far.
func (o *output) String() string {
	text, _ := o.now()
	return text
}
