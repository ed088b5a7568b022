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

// leash ends process $1 when the one that started it is gone, which closes its standard input. A
// line says that there is nothing to do.
const watchdogScript = `read -r _ || kill -KILL "$1"`

// A Process is a program that ends with the process that started it.
type Process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // of Wait; written before exited is closed
}

// begin starts a program. It is in a session of its own: Ctrl-C reaches only who started it, who
// stops it in order.
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
		return nil, fmt.Errorf("cluster: start the leash of %s: %w", cmd.Path, err)
	}
	return p, nil
}

// Pid is its id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when it has ended.
func (p *Process) Done() <-chan struct{} { return p.exited }

// Signal does nothing if it has ended.
func (p *Process) Signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

// stop signals it and waits for its end, which it is helped to if it takes too long.
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
	return fmt.Errorf("cluster: %s has not ended %s after %s", p.cmd.Path, stopTimeout, sig)
}

// FreeAddr returns an address on loopback that nothing listens on. Its port is none of those that systems
// give to outgoing connections: between two lives of a replica one of them would take it.
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

// find returns the path of a program, also if it is among those of the system's administrator.
func find(name string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name, "/opt/homebrew/bin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("cluster: %s is not installed here; make setup-test installs it", name)
}

// NewDir makes a folder that the users of PostgreSQL and PgBouncer can get through.
func NewDir() (string, error) {
	dir, err := os.MkdirTemp("", "cluster-")
	if err != nil {
		return "", fmt.Errorf("cluster: %w", err)
	}
	return dir, os.Chmod(dir, 0o711)
}
