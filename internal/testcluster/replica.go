package testcluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"syscall"
	"time"
)

// pollInterval is the time between two checks of a condition.
const pollInterval = 20 * time.Millisecond

// A Replica is a platform that listens on the same address after every restart.
type Replica struct {
	Name   string // in HAProxy
	Addr   string
	Binary string // of the next start
	env    []string
	log    io.Writer

	process *Process
}

func newReplica(name, binary string, env []string, log io.Writer) (*Replica, error) {
	addr, err := FreeAddr()
	return &Replica{Name: name, Addr: addr, Binary: binary, env: append(slices.Clone(env), "ADDR="+addr), log: log}, err
}

// Start starts the replica's process. It does not wait until it is ready.
func (r *Replica) Start() error {
	cmd := exec.Command(r.Binary, "serve")
	cmd.Env, cmd.Stdout, cmd.Stderr = r.env, r.log, r.log
	process, err := startProcess(cmd)
	if err == nil {
		r.process = process
	}
	return err
}

// Ready returns when the replica answers GET /readyz with 200.
func (r *Replica) Ready(ctx context.Context) error {
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL()+"/readyz", nil)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(request)
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cluster: %s is not ready: %w", r.Name, ctx.Err())
		case <-r.process.Done():
			return fmt.Errorf("cluster: %s has exited (%s); see its log", r.Name, r.process.cmd.ProcessState)
		case <-time.After(pollInterval):
		}
	}
}

// URL is the replica's own address, which bypasses HAProxy.
func (r *Replica) URL() string { return "http://" + r.Addr }

// Pid returns the id of the current process.
func (r *Replica) Pid() int { return r.process.Pid() }

// Signal sends a signal to the current process.
func (r *Replica) Signal(sig syscall.Signal) { r.process.Signal(sig) }

// Kill kills the current process and waits for its exit.
func (r *Replica) Kill() {
	r.process.Signal(syscall.SIGKILL)
	<-r.process.Done()
}

// Stop stops the current process gracefully. The error reports an exit code other than 0.
func (r *Replica) Stop() error {
	if err := r.process.stop(syscall.SIGTERM); err != nil {
		return err
	}
	if code := r.process.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("cluster: %s exited with code %d after SIGTERM", r.Name, code)
	}
	return nil
}
