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

// again is how often is looked whether something has come about.
const pollInterval = 20 * time.Millisecond

// A Replica is a platform that always listens on the same address, whichever process it is.
type Replica struct {
	Name   string // HAProxy's
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

// Start starts it.
func (r *Replica) Start() error {
	cmd := exec.Command(r.Binary, "serve")
	cmd.Env, cmd.Stdout, cmd.Stderr = r.env, r.log, r.log
	process, err := startProcess(cmd)
	if err == nil {
		r.process = process
	}
	return err
}

// Ready returns when it serves.
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
			return fmt.Errorf("cluster: %s has ended (%s); its log tells why", r.Name, r.process.cmd.ProcessState)
		case <-time.After(pollInterval):
		}
	}
}

// URL is where it serves, past HAProxy.
func (r *Replica) URL() string { return "http://" + r.Addr }

// Pid is the id of the process that it is at present.
func (r *Replica) Pid() int { return r.process.Pid() }

// Signal signals the process.
func (r *Replica) Signal(sig syscall.Signal) { r.process.Signal(sig) }

// Kill ends it as nothing can prepare for.
func (r *Replica) Kill() {
	r.process.Signal(syscall.SIGKILL)
	<-r.process.Done()
}

// Stop ends it in order.
func (r *Replica) Stop() error {
	if err := r.process.stop(syscall.SIGTERM); err != nil {
		return err
	}
	if code := r.process.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("cluster: %s ended with code %d after SIGTERM", r.Name, code)
	}
	return nil
}
