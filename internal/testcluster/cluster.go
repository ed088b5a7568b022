// Package testcluster runs a whole deployment on one machine: replicas of the compiled binary behind HAProxy, one
// PostgreSQL for all of them, and optionally PgBouncer and a synchronous standby. Tests and `make cluster` use it.
//
// HAProxy and PgBouncer run with the files of deploy/, in which only addresses and sizes are replaced, so the tests
// cover those files. Everything listens on loopback or Unix sockets, and exits with the process that started it, even
// if that is killed. It is not for production: nothing restarts what has failed.
package testcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/molecule-ai/platform/internal/embeddedpg"
)

const (
	// maxConnections allows 35 connections for each of four replicas, and some for the tests.
	maxConnections = "200"

	// drainDelay is longer than HAProxy takes to notice that a replica is stopping: at most 2.5 s with the intervals of
	// deploy/proxy/haproxy.cfg.
	drainDelay = "4s"

	startTimeout = time.Minute
	stopTimeout  = 45 * time.Second // requests in flight have 30 s to finish
)

// Options configure a cluster.
type Options struct {
	Dir         string // of all files; PostgreSQL's user must be able to enter it (NewDir)
	Binary      string // the compiled platform
	Replicas    int
	Proxy       string // path of deploy/proxy/haproxy.cfg
	Addr        string // of HAProxy; "": a free one on loopback
	AdminToken  string
	DatabaseURL string   // of a migrated database; "": Start starts and migrates a PostgreSQL
	Env         []string // further settings of the replicas
	Log         io.Writer
}

// Cluster is a running cluster. Only one goroutine may use it at a time.
type Cluster struct {
	URL         string // of HAProxy
	DatabaseURL string
	Replicas    []*Replica
	Balancer    *HAProxy
	Postgres    *embeddedpg.Server // nil if Options.DatabaseURL was set
}

// Start starts everything and returns when HAProxy sends requests to every replica. After an error nothing is left
// running.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if o.Log == nil {
		o.Log = io.Discard
	}
	c := &Cluster{DatabaseURL: o.DatabaseURL}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if c.DatabaseURL == "" {
		if err := c.startPostgres(ctx, o); err != nil {
			return nil, err
		}
	}
	env := append([]string{
		"ADMIN_TOKEN=" + o.AdminToken, "DATABASE_URL=" + c.DatabaseURL, "DRAIN_DELAY=" + drainDelay, "TRUSTED_PROXIES=127.0.0.1",
		"SPOOL_DIR=" + o.Dir, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir(),
	}, o.Env...)
	var addrs []string
	for i := range o.Replicas {
		r, err := newReplica(fmt.Sprintf("replica%d", i+1), o.Binary, env, o.Log)
		if err != nil {
			return nil, err
		}
		c.Replicas, addrs = append(c.Replicas, r), append(addrs, r.Addr)
		if err := r.Start(); err != nil {
			return nil, err
		}
	}
	if c.Balancer, err = StartHAProxy(o.Proxy, o.Dir, o.Addr, addrs, o.Log); err != nil {
		return nil, err
	}
	c.URL = "http://" + c.Balancer.Addr
	for _, r := range c.Replicas {
		if err := c.Await(ctx, r); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// startPostgres starts a PostgreSQL and migrates it, like an operator.
func (c *Cluster) startPostgres(ctx context.Context, o Options) (err error) {
	c.Postgres, err = embeddedpg.Start(ctx, embeddedpg.Options{
		DataDir: filepath.Join(o.Dir, "postgres"), Logger: slog.New(slog.DiscardHandler), Settings: map[string]string{"max_connections": maxConnections},
	})
	if err != nil {
		return err
	}
	c.DatabaseURL = c.Postgres.DSN(embeddedpg.DefaultDatabase)
	return Migrate(ctx, o.Binary, c.DatabaseURL)
}

// Migrate runs `platform migrate up`.
func Migrate(ctx context.Context, binary, databaseURL string) error {
	cmd := exec.CommandContext(ctx, binary, "migrate", "up")
	cmd.Env = []string{"DATABASE_URL=" + databaseURL}
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cluster: migrate: %w\n%s", err, output)
	}
	return nil
}

// Roll replaces the replicas one after the other by a binary, as a rolling upgrade does: it stops one, starts its
// successor, and waits until HAProxy sends it requests.
func (c *Cluster) Roll(ctx context.Context, binary string) error {
	for _, r := range c.Replicas {
		if err := r.Stop(); err != nil {
			return err
		}
		r.Binary = binary
		if err := r.Start(); err != nil {
			return err
		}
		if err := c.Await(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// Await returns when a replica is ready and HAProxy sends it requests.
func (c *Cluster) Await(ctx context.Context, r *Replica) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := r.Ready(ctx); err != nil {
		return err
	}
	return c.Balancer.Await(ctx, r.Name, Up)
}

// Close stops everything: first HAProxy, so that no new requests arrive, then all replicas together, last PostgreSQL.
func (c *Cluster) Close() error {
	var errs []error
	if c.Balancer != nil {
		errs = append(errs, c.Balancer.Close())
	}
	for _, r := range c.Replicas {
		if r.process != nil {
			r.process.Signal(syscall.SIGKILL) // what it has acknowledged is on disk
			<-r.process.Done()
		}
	}
	if c.Postgres != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		errs = append(errs, c.Postgres.Stop(ctx))
	}
	return errors.Join(errs...)
}
