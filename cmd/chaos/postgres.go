//go:build linux

package main

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lib/pq"

	"github.com/molecule-ai/platform/internal/embeddedpg"
)

const (
	startLimit = time.Minute
	endLimit   = 20 * time.Second
)

// postgres is the PostgreSQL that the platforms use by DATABASE_URL. Unlike that of other tests it syncs to disk, so
// committed data must survive every fault.
type postgres struct {
	dir    string
	server *embeddedpg.Server
	db     *sql.DB // bypasses the proxies
}

func startPostgres(ctx context.Context, dir string) (*postgres, error) {
	p := &postgres{dir: filepath.Join(dir, "postgres")}
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	var err error
	p.db, err = sql.Open("postgres", p.dsn()+" connect_timeout=10")
	return p, err
}

func (p *postgres) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var err error
	p.server, err = embeddedpg.Start(ctx, embeddedpg.Options{
		DataDir: p.dir, Logger: slog.New(slog.DiscardHandler),
		Settings: map[string]string{
			// A killed platform's connections may linger while the next one makes its own.
			"max_connections": "300",
			// Bounds the WAL to recover from: on a busy machine 0.5 GB take 10 s.
			"max_wal_size": "512MB",
		},
	})
	return err
}

func (p *postgres) dsn() string { return p.server.DSN(embeddedpg.DefaultDatabase) }

// socket is the path of the Unix socket.
func (p *postgres) socket() (string, error) {
	c, err := pq.NewConfig(p.dsn())
	if err != nil {
		return "", err
	}
	return filepath.Join(c.Host, ".s.PGSQL."+strconv.Itoa(int(c.Port))), nil
}

// stopImmediately is an immediate shutdown: it aborts transactions and writes no checkpoint. The next start recovers
// from the WAL.
func (p *postgres) stopImmediately() error {
	_ = syscall.Kill(p.server.Pid(), syscall.SIGQUIT)
	select {
	case <-p.server.Done():
		return nil
	case <-time.After(endLimit):
		return fmt.Errorf("PostgreSQL did not exit within %s after SIGQUIT", endLimit)
	}
}

// pause stops all processes of the server until resume is called.
func (p *postgres) pause() (resume func(), err error) {
	master := p.server.Pid()
	if err := syscall.Kill(master, syscall.SIGSTOP); err != nil {
		return nil, err
	}
	// A stopped postmaster starts no new children.
	children, err := childrenOf(master)
	for _, pid := range children {
		_ = syscall.Kill(pid, syscall.SIGSTOP) // or it has ended
	}
	return func() {
		for _, pid := range children {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
		_ = syscall.Kill(master, syscall.SIGCONT)
	}, err
}

func childrenOf(parent int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var children []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue // it has ended
		}
		// The program's name, in parentheses, may contain any character.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			children = append(children, pid)
		}
	}
	return children, nil
}

// platformSessions returns the number of the platforms' connections.
func (p *postgres) platformSessions(ctx context.Context) (n int, err error) {
	err = p.db.QueryRowContext(ctx, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'molecule-platform'`).Scan(&n)
	return n, err
}

// terminate ends a random share of the backends that serve platforms.
func (p *postgres) terminate(ctx context.Context, share float64) (n int, err error) {
	err = p.db.QueryRowContext(ctx, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity `+
		`WHERE application_name = 'molecule-platform' AND random() < $1`, share).Scan(&n)
	return n, err
}

func (p *postgres) stop() error {
	if p.db != nil {
		p.db.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	return p.server.Stop(ctx)
}
