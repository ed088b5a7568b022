package testcluster

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// watchdogScript kills process $1 when the process that started it has exited, which closes the script's standard
// input. A line on it means that $1 has exited by itself.
const watchdogScript = `read -r _ || kill -KILL "$1"`

// A Process is a program that does not outlive the process that started it.
type Process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // of Wait; written before exited is closed
}

// startProcess starts a program in its own session: Ctrl-C reaches only the process that started it, which then stops
// the program gracefully.
func startProcess(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cluster: start %s: %w", cmd.Path, err)
	}
	p := &Process{cmd: cmd, exited: make(chan struct{})}
	watchdog := exec.Command("/bin/sh", "-c", watchdogScript, "sh", strconv.Itoa(p.Pid()))
	watchdog.Dir = "/"
	watchdog.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := watchdog.StdinPipe()
	if err == nil {
		err = watchdog.Start()
	}
	go func() {
		p.err = p.cmd.Wait()
		if watchdog.Process != nil {
			fmt.Fprintln(stdin, "ended")
			_ = watchdog.Wait()
		}
		close(p.exited)
	}()
	if err != nil {
		p.Signal(syscall.SIGKILL)
		<-p.exited
		return nil, fmt.Errorf("cluster: start the watchdog of %s: %w", cmd.Path, err)
	}
	return p, nil
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has exited.
func (p *Process) Done() <-chan struct{} { return p.exited }

// Signal sends a signal. It does nothing if the process has exited.
func (p *Process) Signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

// stop sends a signal and waits for the exit. After stopTimeout it kills the process and returns an error.
func (p *Process) stop(sig syscall.Signal) error {
	if p == nil {
		return nil
	}
	p.Signal(sig)
	select {
	case <-p.exited:
		return nil
	case <-time.After(stopTimeout):
	}
	p.Signal(syscall.SIGKILL)
	<-p.exited
	return fmt.Errorf("cluster: %s did not exit within %s after %s", p.cmd.Path, stopTimeout, sig)
}

// FreeAddr returns a loopback address that nothing listens on. Its port is outside the range for outgoing connections,
// one of which could otherwise take it while a replica restarts.
func FreeAddr() (string, error) {
	const first, last, attempts = 15_000, 32_000, 100
	var err error
	for range attempts {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+rand.IntN(last-first))); err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", fmt.Errorf("cluster: %w", err)
}

// find returns the path of a program, also in the folders for administrators, which may not be in $PATH.
func find(name string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name, "/opt/homebrew/bin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("cluster: %s is not installed; run 'make setup-cluster'", name)
}

// NewDir creates a temporary folder that the users of PostgreSQL and PgBouncer can enter.
func NewDir() (string, error) {
	dir, err := os.MkdirTemp("", "cluster-")
	if err != nil {
		return "", fmt.Errorf("cluster: %w", err)
	}
	return dir, os.Chmod(dir, 0o711)
}
