//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/molecule-ai/platform/internal/testcluster"
)

// stopLimit is the maximum time of a graceful stop. The platform allows 30 s for requests in flight, but no client here
// is that slow: a longer stop means that the platform waits for an abandoned request.
const stopLimit = 10 * time.Second

// watchdogScript kills process $1 when the process that started it has ended, which closes the script's standard input.
// A line on it means that $1 has ended by itself.
const watchdogScript = `read -r _ || kill -KILL "$1"`

// A platform is one replica: a process that listens on the same port after every restart, with a proxy to its clients
// and one to PostgreSQL.
type platform struct {
	index    int
	addr     string
	binary   string // of the next start
	env      []string
	log      *logFile
	clients  *proxy
	database *proxy
	problem  func(format string, args ...any)

	mu      sync.Mutex
	current *process
}

// process is one process of a platform.
type process struct {
	cmd      *exec.Cmd
	expected bool // the exit is; guarded by the platform's mu
	exited   chan struct{}
}

// newPlatform prepares a replica. socket is PostgreSQL's, env the settings that all replicas share.
func newPlatform(index int, binary, socket string, env []string, log *logFile, problem func(string, ...any)) (*platform, error) {
	addr, err := testcluster.FreeAddr() // it keeps the port over restarts
	if err != nil {
		return nil, err
	}
	p := &platform{index: index, addr: addr, binary: binary, log: log, problem: problem}
	if p.clients, err = newProxy("tcp", addr); err != nil {
		return nil, err
	}
	if p.database, err = newProxy("unix", socket); err != nil {
		return nil, err
	}
	p.env = append([]string{
		"ADDR=" + addr, "DATABASE_URL=postgres://platform@" + p.database.addr() + "/platform?sslmode=disable",
		"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir(),
	}, env...)
	return p, nil
}

// run runs a command of the binary, like an operator.
func (p *platform) run(args ...string) error {
	cmd := exec.Command(p.binary, args...)
	cmd.Env = p.env
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("platform %q: %w\n%s", args, err, output)
	}
	return nil
}

// start starts a new process. It does not wait until the platform is ready.
func (p *platform) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	life := &process{cmd: exec.Command(p.binary, "serve"), exited: make(chan struct{})}
	life.cmd.Env, life.cmd.Stderr, life.cmd.Stdout = p.env, p.log, p.log
	life.cmd.WaitDelay = 5 * time.Second
	if err := life.cmd.Start(); err != nil {
		return err
	}
	watchdog := exec.Command("/bin/sh", "-c", watchdogScript, "sh", strconv.Itoa(life.cmd.Process.Pid))
	stdin, err := watchdog.StdinPipe()
	if err == nil {
		err = watchdog.Start()
	}
	go func() {
		err := life.cmd.Wait()
		if watchdog.Process != nil {
			fmt.Fprintln(stdin, "ended")
			_ = watchdog.Wait()
		}
		p.mu.Lock()
		expected := life.expected
		p.mu.Unlock()
		close(life.exited)
		if !expected {
			p.problem("platform %d exited unexpectedly: %v; see its log", p.index, err)
			time.Sleep(time.Second) // like a supervisor
			if err := p.start(); err != nil {
				p.problem("platform %d cannot be restarted: %v", p.index, err)
			}
		}
	}()
	p.current = life
	return err
}

// use sets the binary of the next start.
func (p *platform) use(binary string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.binary = binary
}

// signal sends a signal to the current process. If the signal ends it, the exit is expected.
func (p *platform) signal(sig syscall.Signal) *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	if sig == syscall.SIGKILL || sig == syscall.SIGTERM || sig == syscall.SIGQUIT {
		p.current.expected = true
	}
	_ = p.current.cmd.Process.Signal(sig)
	return p.current
}

func (p *platform) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current.cmd.Process.Pid
}

// kill kills the process.
func (p *platform) kill() { <-p.signal(syscall.SIGKILL).exited }

// stop stops the process gracefully.
func (p *platform) stop() error {
	life := p.signal(syscall.SIGTERM)
	select {
	case <-life.exited:
	case <-time.After(stopLimit):
		p.signal(syscall.SIGQUIT) // makes it log its goroutines
		<-life.exited
		return fmt.Errorf("platform %d did not exit within %s after SIGTERM; its goroutines are in its log", p.index, stopLimit)
	}
	if code := life.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("platform %d exited with code %d after SIGTERM", p.index, code)
	}
	return nil
}

func (p *platform) close() {
	p.mu.Lock()
	running := p.current != nil
	p.mu.Unlock()
	if running {
		p.kill()
	}
	p.clients.close()
	p.database.close()
}

// logFile writes the log of a platform, and reports lines that must never be in it.
type logFile struct {
	mu     sync.Mutex
	file   *os.File
	rest   []byte
	broken func(line string)
}

// alarming are parts of lines that report a bug in the platform.
var alarming = [][]byte{[]byte(`"msg":"panic"`), []byte("panic: "), []byte("fatal error: "), []byte("DATA RACE")}

func newLogFile(path string, broken func(line string)) (*logFile, error) {
	f, err := os.Create(path)
	return &logFile{file: f, broken: broken}, err
}

// Write implements io.Writer.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			break
		}
		for _, sign := range alarming {
			if bytes.Contains(line, sign) {
				l.broken(string(line))
				break
			}
		}
		l.rest = rest
	}
	l.rest = bytes.Clone(l.rest)
	return l.file.Write(p)
}

func (l *logFile) close() error {
	if l == nil || l.file == nil {
		return nil
	}
	if err := l.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
