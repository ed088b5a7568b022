package testcluster

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lib/pq"

	"github.com/molecule-ai/platform/internal/embeddedpg"
)

// A Pair is a PostgreSQL and its synchronous standby: a commit is acknowledged after both have it on disk
// (synchronous_standby_names). It needs Linux, whose /proc shows where PostgreSQL's programs are.
type Pair struct {
	DatabaseURL      string // leads to whichever of the two accepts writes
	Primary, Standby *embeddedpg.Server

	standbyData string
	programs    string
	user        *syscall.Credential // of PostgreSQL's programs; nil: the current user
}

const (
	sqlSynchronous = `ALTER SYSTEM SET synchronous_standby_names = '*'`
	sqlReload      = `SELECT pg_reload_conf()`
	sqlInSync      = `SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')`
)

// StartPair starts both, with their data in dir, and returns when the standby has caught up.
func StartPair(ctx context.Context, dir string) (_ *Pair, err error) {
	p := &Pair{standbyData: filepath.Join(dir, "standby", "postgres")}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.Primary, err = startServer(ctx, filepath.Join(dir, "primary")); err != nil {
		return nil, err
	}
	if err := p.copyPrimary(ctx); err != nil {
		return nil, err
	}
	if p.Standby, err = startServer(ctx, filepath.Join(dir, "standby")); err != nil {
		return nil, err
	}
	var hosts []string
	for _, s := range []*embeddedpg.Server{p.Primary, p.Standby} {
		c, err := pq.NewConfig(s.DSN(embeddedpg.DefaultDatabase))
		if err != nil {
			return nil, fmt.Errorf("cluster: %w", err)
		}
		hosts = append(hosts, c.Host)
		p.DatabaseURL = fmt.Sprintf("host=%s port=%d,%d user=%s dbname=%s sslmode=disable target_session_attrs=read-write",
			strings.Join(hosts, ","), c.Port, c.Port, c.User, c.Database)
	}
	return p, p.synchronize(ctx)
}

func startServer(ctx context.Context, dir string) (*embeddedpg.Server, error) {
	return embeddedpg.Start(ctx, embeddedpg.Options{
		DataDir: dir, Logger: slog.New(slog.DiscardHandler), Settings: map[string]string{"max_connections": maxConnections},
	})
}

// copyPrimary creates the standby's data with pg_basebackup.
func (p *Pair) copyPrimary(ctx context.Context) error {
	program, err := os.Readlink("/proc/" + strconv.Itoa(p.Primary.Pid()) + "/exe")
	if err != nil {
		return fmt.Errorf("cluster: find PostgreSQL's programs: %w", err)
	}
	p.programs = filepath.Dir(program)
	c, err := pq.NewConfig(p.Primary.DSN(embeddedpg.DefaultDatabase))
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	if err := os.MkdirAll(p.standbyData, 0o700); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	if os.Geteuid() == 0 {
		info, err := os.Stat(c.Host)
		if err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("cluster: the owner of %s is unknown", c.Host)
		}
		p.user = &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
		if err := errors.Join(os.Chmod(filepath.Dir(p.standbyData), 0o711), os.Chown(p.standbyData, int(owner.Uid), int(owner.Gid))); err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
	}
	return p.run(ctx, "pg_basebackup", "-h", c.Host, "-p", strconv.Itoa(int(c.Port)), "-U", c.User, "-D", p.standbyData,
		"--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream")
}

// run executes one of PostgreSQL's programs.
func (p *Pair) run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(p.programs, program), args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.user}
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cluster: %s: %w\n%s", program, err, output)
	}
	return nil
}

// synchronize turns on synchronous replication and waits until the standby is in sync.
func (p *Pair) synchronize(ctx context.Context) error {
	db, err := sql.Open("postgres", p.Primary.DSN(embeddedpg.DefaultDatabase))
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	defer db.Close()
	for _, statement := range []string{sqlSynchronous, sqlReload} {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("cluster: %s: %w", statement, err)
		}
	}
	for {
		var done bool
		if err := db.QueryRowContext(ctx, sqlInSync).Scan(&done); err != nil {
			return fmt.Errorf("cluster: wait for the standby: %w", err)
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cluster: the standby is not in sync: %w", ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}

// LosePrimary kills all processes of the primary at once, like the loss of its machine.
func (p *Pair) LosePrimary() error {
	children, err := childrenOf(p.Primary.Pid())
	for _, pid := range append([]int{p.Primary.Pid()}, children...) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.Primary.Done()
	return err
}

// Promote makes the standby the primary.
func (p *Pair) Promote(ctx context.Context) error {
	return p.run(ctx, "pg_ctl", "promote", "-D", p.standbyData)
}

// Close stops both servers.
func (p *Pair) Close() error {
	var errs []error
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	for _, s := range []*embeddedpg.Server{p.Standby, p.Primary} { // the primary would wait for the standby
		if s != nil {
			errs = append(errs, s.Stop(ctx))
		}
	}
	return errors.Join(errs...)
}

// childrenOf returns the child processes of a process.
func childrenOf(parent int) ([]int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	if err != nil {
		return nil, err
	}
	var children []int
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				children = append(children, pid)
			}
		}
	}
	return children, nil
}
