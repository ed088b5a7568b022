// Package embeddedpg runs a private PostgreSQL server for development and tests, from the binaries that are installed
// on the machine.
//
// It promises that
//   - the server listens only on a Unix socket in a folder of mode 0700, so that only its user and root can connect;
//   - one instance at a time uses a data folder (ErrInUse for the others);
//   - the server does not outlive its owner: it exits with Stop, and within seconds after its owner was killed;
//   - committed data survives both, and an interrupted first start leaves a usable folder.
//
// It does not download PostgreSQL, upgrade data between major versions, take backups, or serve other machines: for
// those, run PostgreSQL yourself and set DATABASE_URL. It works on Unix systems.
package embeddedpg

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// DefaultDatabase is the database that Start creates if it is missing.
const DefaultDatabase = "platform"

// The superuser of the server, and its port, which is only part of the Unix socket's file name.
const (
	userName = "platform"
	port     = "5432"
)

// quitTimeout is the time from SIGQUIT to SIGKILL. PostgreSQL kills its own children 5 s after SIGQUIT.
const quitTimeout = 10 * time.Second

var (
	// ErrNoBinaries is returned by Start if no PostgreSQL 14 or later is installed.
	ErrNoBinaries = errors.New("no PostgreSQL 14 or later is installed: install the server " +
		"(for example apt-get install postgresql, or brew install postgresql), or set DATABASE_URL to one that runs")

	// ErrInUse is returned by Start if another instance uses the data folder.
	ErrInUse = errors.New("another instance runs on the data folder")

	// ErrDataDir is returned by Start if the data folder cannot be used: it belongs to another user, is not writable,
	// cannot be entered by PostgreSQL's user, or was created by another major version.
	ErrDataDir = errors.New("the data folder cannot be used")
)

// Options configure a server.
type Options struct {
	// DataDir is the platform's data folder; it is created with its parents if it is missing. PostgreSQL's data is in
	// the subfolder "postgres", its log in "postgres.log". The caller may keep other files there. An existing folder
	// keeps its mode.
	DataDir string

	// Logger logs the start and the end of the server; nil: slog.Default.
	Logger *slog.Logger

	// Settings are further settings of postgresql.conf, such as "fsync": "off" for tests. Those that make the server
	// private (socket, port, addresses) cannot be overridden.
	Settings map[string]string
}

// Server is a running PostgreSQL. Its methods may be called from any goroutine.
type Server struct {
	logger    *slog.Logger
	folder    *folder
	log       *serverLog
	process   *child
	socketDir socketDir

	stopping chan struct{} // closed by the first Stop
	stopOnce sync.Once
	done     chan struct{}
	err      error // written before done is closed
}

// Start creates the data folder if necessary, starts PostgreSQL on it and returns when the server accepts connections
// and DefaultDatabase exists. It gives up when ctx is done; after it has returned, ctx has no effect.
//
// Errors are ErrNoBinaries, ErrInUse and ErrDataDir; any other contains the last error that PostgreSQL logged. Each is
// one sentence that can be shown to the user.
func Start(ctx context.Context, opts Options) (*Server, error) {
	return start(ctx, opts, usualPlaces())
}

func start(ctx context.Context, opts Options, places places) (_ *Server, err error) {
	s := &Server{logger: opts.Logger, stopping: make(chan struct{}), done: make(chan struct{})}
	if s.logger == nil {
		s.logger = slog.Default()
	}
	defer func() {
		if err != nil {
			s.release()
			err = fmt.Errorf("embeddedpg: %w", err)
		}
	}()

	if s.folder, err = openFolder(opts.DataDir); err != nil {
		return nil, err
	}
	dir := s.folder.path
	bin, err := places.find(ctx, s.folder.dataVersion())
	if err != nil {
		return nil, err
	}
	if s.socketDir, err = makeSocketDir(s.folder); err != nil {
		return nil, err
	}
	if s.log, err = openServerLog(dir); err != nil {
		return nil, err
	}
	identity, err := s.folder.account.identity(bin.dir, dir, s.socketDir.path)
	if err != nil {
		return nil, err
	}
	if err := s.folder.awaitPredecessor(ctx); err != nil {
		return nil, err
	}
	if err := s.folder.initialize(ctx, bin, identity, s.log, opts.Settings["fsync"] != "off"); err != nil {
		return nil, err
	}

	s.process, err = spawn(identity, s.log, s.socketDir, bin.postgres,
		serverArgs(dataPath(dir), s.socketDir.path, opts.Settings)...)
	if err != nil {
		return nil, err
	}
	go s.supervise()
	if err := s.prepare(ctx); err != nil {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = s.Stop(stopCtx)
		return nil, err
	}
	s.logger.Info("postgresql started", "pid", s.Pid(), "version", bin.major, "data_dir", dir)
	return s, nil
}

// serverArgs puts the settings that keep the server private last, where they override the others.
func serverArgs(data, socketDir string, settings map[string]string) []string {
	args := []string{"-D", data, "-c", "max_connections=100", "-c", "shared_buffers=128MB", "-c", "timezone=UTC", "-c", "log_timezone=UTC"}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return append(args,
		"-c", "listen_addresses=",
		"-c", "port="+port,
		"-c", "unix_socket_directories="+socketDir,
		"-c", "unix_socket_permissions=0700",
		"-c", "logging_collector=off",
		"-c", "log_destination=stderr")
}

// supervise waits for the process to exit, for whatever reason, and releases everything.
func (s *Server) supervise() {
	<-s.process.exited
	select {
	case <-s.stopping:
		s.logger.Info("postgresql stopped", "pid", s.Pid())
	default:
		s.err = fmt.Errorf("embeddedpg: PostgreSQL exited unexpectedly: %s", s.process.exitReason)
		s.logger.Error("postgresql exited unexpectedly", "pid", s.Pid(), "error", s.err)
	}
	s.release()
	close(s.done)
}

func (s *Server) release() {
	if s.log != nil {
		s.log.close()
		s.log = nil
	}
	s.socketDir.remove()
	if s.folder != nil {
		s.folder.unlock()
		s.folder = nil
	}
}

// prepare waits until the server answers, and creates the default database.
func (s *Server) prepare(ctx context.Context) error {
	// A context ends lib/pq's dialling, but not its wait for the server's first message.
	db, err := sql.Open("postgres", s.DSN("postgres")+" connect_timeout=2")
	if err != nil {
		return fmt.Errorf("open connection pool: %w", err)
	}
	defer db.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.process.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := waitReady(ctx, db); err != nil {
		return s.startError(err)
	}
	var exists bool
	err = db.QueryRowContext(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", DefaultDatabase).Scan(&exists)
	if err != nil {
		return s.startError(fmt.Errorf("check whether database %s exists: %w", DefaultDatabase, err))
	}
	if exists {
		return nil
	}
	if _, err := db.ExecContext(ctx, "CREATE DATABASE "+pq.QuoteIdentifier(DefaultDatabase)); err != nil {
		return s.startError(fmt.Errorf("create database %s: %w", DefaultDatabase, err))
	}
	return nil
}

// waitReady returns nil when the server accepts a connection. While it starts or recovers, there is no socket yet, or
// it answers cannot_connect_now; any other answer is final.
func waitReady(ctx context.Context, db *sql.DB) error {
	retry := time.NewTicker(25 * time.Millisecond)
	defer retry.Stop()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		answer := new(pq.Error)
		if errors.Is(err, os.ErrPermission) || errors.As(err, &answer) && answer.Code != pqerror.CannotConnectNow {
			return fmt.Errorf("connect to PostgreSQL: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL did not become ready: %w", context.Cause(ctx))
		case <-retry.C:
		}
	}
}

// startError returns PostgreSQL's own reason if it has exited, which says more than a client's error.
func (s *Server) startError(err error) error {
	select {
	case <-s.process.exited:
		return fmt.Errorf("PostgreSQL did not start: %s", s.process.exitReason)
	default:
		return err
	}
}

// DSN returns the connection string of a database on this server, in the keyword form that lib/pq and psql accept.
func (s *Server) DSN(database string) string {
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace
	return fmt.Sprintf("host='%s' port=%s user=%s dbname='%s' sslmode=disable", quote(s.socketDir.path), port, userName, quote(database))
}

// Pid returns the process id of the server.
func (s *Server) Pid() int { return s.process.pid() }

// Done is closed when the server has exited, by Stop or by itself.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err returns an error if the server exited by itself; nil while it runs and after Stop.
func (s *Server) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Stop shuts the server down and returns when it has exited: open transactions are rolled back, connections closed. If
// ctx is done first, it shuts the server down immediately and returns the error of ctx; the next start then needs a
// recovery, but no committed data is lost. Stopping twice, or a server that has exited, is no error.
func (s *Server) Stop(ctx context.Context) error {
	s.stopOnce.Do(func() {
		close(s.stopping)
		s.process.signal(syscall.SIGINT)
	})
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
	}
	s.process.signal(syscall.SIGQUIT)
	kill := time.AfterFunc(quitTimeout, func() { s.process.signal(syscall.SIGKILL) })
	defer kill.Stop()
	<-s.done
	return fmt.Errorf("embeddedpg: stop: PostgreSQL had to be shut down immediately: %w", context.Cause(ctx))
}

// logPath and dataPath are the paths of the log and of PostgreSQL's data in a data folder.
func logPath(dir string) string  { return filepath.Join(dir, "postgres.log") }
func dataPath(dir string) string { return filepath.Join(dir, "postgres") }

// exists reports whether path exists.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
