//go:build linux

package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lib/pq"

	"github.com/molecule-ai/platform/internal/embeddedpg"
)

const (
	adminToken = "the-operators-token-of-a-benchmark"

	// conns is the number of connections of the limit: more than the workers of any case.
	conns = 64

	startLimit = time.Minute
	stopLimit  = 40 * time.Second
)

// A stack is a PostgreSQL and the platforms on it.
type stack struct {
	dir       string
	postgres  *embeddedpg.Server
	platforms []*platform
}

func startStack(ctx context.Context, dir string) (*stack, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	postgres, err := embeddedpg.Start(ctx, embeddedpg.Options{
		DataDir: dir, Logger: slog.New(slog.DiscardHandler),
		Settings: map[string]string{
			"max_connections":        "300",
			"shared_buffers":         "512MB",
			"max_wal_size":           "4GB",
			"track_commit_timestamp": "on", // for wakeCase
		},
	})
	if err != nil {
		return nil, err
	}
	return &stack{dir: dir, postgres: postgres}, nil
}

func (s *stack) stop() error {
	var errs []error
	for _, p := range s.platforms {
		errs = append(errs, p.stop())
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	return errors.Join(append(errs, s.postgres.Stop(ctx))...)
}

// A platform is a running platform, with direct connections to its database for the limit.
type platform struct {
	url    string
	bare   string // URL of the bare server, which gets the requests instead; "": none
	dsn    string
	binary string
	env    []string
	log    string
	cmd    *exec.Cmd
	exited chan error
	db     *sql.DB // with the platform's options for reading
	writes *sql.DB // with the platform's options for writing files
}

// startPlatform starts a platform on its own database.
func (s *stack) startPlatform(ctx context.Context, binary, database string, env ...string) (*platform, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if database != embeddedpg.DefaultDatabase {
		admin, err := sql.Open("postgres", s.postgres.DSN(embeddedpg.DefaultDatabase))
		if err != nil {
			return nil, err
		}
		defer admin.Close()
		if _, err := admin.ExecContext(ctx, "CREATE DATABASE "+pq.QuoteIdentifier(database)); err != nil {
			return nil, err
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := listener.Addr().String()
	if err := listener.Close(); err != nil {
		return nil, err
	}
	p := &platform{url: "http://" + addr, dsn: s.postgres.DSN(database), binary: binary, log: filepath.Join(s.dir, "platform-"+database+".log")}
	p.env = append(os.Environ(), "ADDR="+addr, "DATABASE_URL="+p.dsn, "ADMIN_TOKEN="+adminToken, "METRICS_ADDR=",
		"QUOTA_BYTES=1TiB", "QUOTA_FILES=1000000", "RATE_LIMIT=0", "SWEEP_INTERVAL=24h")
	p.env = append(p.env, env...)
	if output, err := command(p.env, binary, "migrate", "up").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s migrate up: %w\n%s", binary, err, output)
	}
	if p.db, err = openPool(p.dsn, false); err != nil {
		return nil, err
	}
	if p.writes, err = openPool(p.dsn, true); err != nil {
		return nil, err
	}
	s.platforms = append(s.platforms, p)
	return p, p.start(ctx)
}

func (p *platform) start(ctx context.Context) error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd, p.exited = command(p.env, p.binary, "serve"), make(chan error, 1)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() { p.exited <- p.cmd.Wait() }()
	return p.awaitStatus(ctx, "/readyz", http.StatusOK)
}

// restart replaces the process by a new one.
func (p *platform) restart(ctx context.Context) error {
	client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return errors.Join(p.end(), p.start(ctx))
}

func command(env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // only this process gets Ctrl-C, and stops the others gracefully
	return cmd
}

// awaitStatus waits until a GET of path is answered with status.
func (p *platform) awaitStatus(ctx context.Context, path string, status int) error {
	for {
		response, err := http.Get(p.url + path) // answers at once or fails
		if err == nil {
			response.Body.Close()
			if response.StatusCode == status {
				return nil
			}
		}
		select {
		case err := <-p.exited:
			return fmt.Errorf("the platform exited: %w", err)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *platform) stop() error {
	p.db.Close()
	p.writes.Close()
	return p.end()
}

func (p *platform) end() error {
	if p.exited == nil {
		return nil // never started
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-p.exited:
		return err
	case <-time.After(stopLimit):
		_ = p.cmd.Process.Kill()
		return errors.New("the platform did not exit")
	}
}

// openPool opens a pool with the platform's options: lib/pq needs binary_parameters to write bytes without escaping
// them, and must not have it to read them so.
func openPool(dsn string, binary bool) (*sql.DB, error) {
	c, err := pq.NewConfig(dsn)
	if err != nil {
		return nil, err
	}
	c.BinaryParameters = binary
	connector, err := pq.NewConnectorConfig(c)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}
