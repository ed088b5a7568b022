package server

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"

	"github.com/molecule-ai/platform/internal/embeddedpg"
	"github.com/molecule-ai/platform/internal/prepared"
	"github.com/molecule-ai/platform/internal/schema"
	"github.com/molecule-ai/platform/internal/synced"
)

const (
	// Connections for everything but writing files, and for writing files. The latter bound
	// the memory that uploads take: each holds a piece of a file a few times over.
	maxConns        = 24
	maxStagingConns = 8

	// What a replica that freezes in the middle of a transaction may cost the others, who wait
	// for its locks until PostgreSQL ends it; and what one statement may take, at most a MiB
	// to write.
	idleInTxTimeout  = 15 * time.Second
	lockTimeout      = 4 * time.Second // less than wsauth waits for a connection to look up a token
	statementTimeout = time.Minute

	connIdleTime   = 5 * time.Minute
	connectTimeout = 10 * time.Second

	// hostTimeout is connectTimeout of each of several servers. They are tried one after the other, within
	// the patience of who asks, so one that says nothing must leave time for the next.
	hostTimeout = 1500 * time.Millisecond

	// unansweredTimeout is how long a server may leave unacknowledged what was sent to it, until its
	// connection is broken: otherwise the kernel tries for a quarter of an hour.
	unansweredTimeout = 20 * time.Second

	startTimeout = time.Minute
)

// AdminTokenFile is where the token made on first start is kept, in the data folder.
const AdminTokenFile = "admin_token"

// openDatabase starts the private PostgreSQL or connects to the operator's, and opens the pools.
func (s *Server) openDatabase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	dsn := s.config.DatabaseURL
	if s.config.Embedded() {
		postgres, err := embeddedpg.Start(ctx, embeddedpg.Options{DataDir: s.config.DataDir, Logger: s.log})
		if err != nil {
			return err
		}
		s.postgres = postgres
		dsn = postgres.DSN(embeddedpg.DefaultDatabase)
	}
	if err := s.openPools(dsn); err != nil {
		return err
	}
	if err := s.db.PingContext(ctx); err != nil {
		if pq.As(err, pqerror.ProtocolViolation) != nil {
			return fmt.Errorf("the database of DATABASE_URL does not take the platform's settings: %w; %s", err, poolerAdvice)
		}
		return fmt.Errorf("the database of DATABASE_URL cannot be reached: %w", err)
	}
	if err := s.checkSessions(ctx); err != nil {
		return err
	}
	if !s.config.Embedded() {
		return nil
	}
	if err := s.migrate(ctx, dsn); err != nil {
		return err
	}
	if s.config.AdminToken != "" {
		return nil
	}
	var err error
	s.config.AdminToken, err = loadAdminToken(s.config.DataDir)
	return err
}

// migrate brings the private PostgreSQL to the newest schema. One that a newer platform has migrated stays as it is:
// build decides whether this platform can serve on it.
func (s *Server) migrate(ctx context.Context, dsn string) error {
	db, err := OpenDatabase(dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	applied, err := schema.Up(ctx, db)
	for _, m := range applied {
		s.log.InfoContext(ctx, "migration applied", "migration", m.String())
	}
	if errors.Is(err, schema.ErrUnknownVersion) {
		return nil
	}
	return err
}

// OpenDatabase connects to the database that dsn names, for commands that do not serve. What
// they do may take its time.
func OpenDatabase(dsn string) (*sql.DB, error) { return openPool(dsn, maxConns) }

type poolOption func(*pq.Config)

// bounded limits the time of what a pool does.
func bounded(c *pq.Config) {
	limits := map[string]time.Duration{
		"idle_in_transaction_session_timeout": idleInTxTimeout, "lock_timeout": lockTimeout, "statement_timeout": statementTimeout,
	}
	if c.Runtime == nil {
		c.Runtime = map[string]string{}
	}
	for name, limit := range limits {
		if _, set := c.Runtime[name]; !set { // the operator's URL knows better
			c.Runtime[name] = strconv.FormatInt(limit.Milliseconds(), 10)
		}
	}
}

// binary makes lib/pq send bytes as they are, instead of as hex. It then reads results as hex,
// so this is for a pool that only writes them.
func binary(c *pq.Config) { c.BinaryParameters = true }

// openPool opens a pool of at most n connections, each of which is a session of PostgreSQL.
func openPool(dsn string, n int, options ...poolOption) (*sql.DB, error) {
	connector, err := newConnector(dsn, options...)
	if err != nil {
		return nil, err
	}
	return sized(prepared.Connector(connector), n), nil
}

func newConnector(dsn string, options ...poolOption) (driver.Connector, error) {
	c, err := pq.NewConfig(dsn)
	if err != nil {
		return nil, errors.New("the database URL cannot be read; write postgres://user:password@host:5432/database?sslmode=require")
	}
	for _, option := range options {
		option(&c)
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout // lib/pq waits for the server's first answer whatever the context says
		if len(c.Multi) > 0 {
			c.ConnectTimeout = hostTimeout
		}
	}
	if c.ApplicationName == "" {
		c.ApplicationName = "molecule-platform"
	}
	connector, err := pq.NewConnectorConfig(c)
	if err != nil {
		return nil, fmt.Errorf("the database cannot be used: %w", err)
	}
	connector.Dialer(newDatabaseDialer())
	return synced.Connector(connector), nil
}

// databaseDialer dials the database.
type databaseDialer struct{ net.Dialer }

func newDatabaseDialer() *databaseDialer {
	return &databaseDialer{net.Dialer{ControlContext: boundUnanswered}}
}

// DialTimeout implements pq.Dialer, which has a method for what a field of net.Dialer says.
func (d *databaseDialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	limited := d.Dialer
	limited.Timeout = timeout
	return limited.Dial(network, address)
}

func sized(connector driver.Connector, n int) *sql.DB {
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	db.SetConnMaxIdleTime(connIdleTime)
	return db
}

// loadAdminToken returns the token that was made on first start, or makes it.
func loadAdminToken(dataDir string) (string, error) {
	path := filepath.Join(dataDir, AdminTokenFile)
	raw, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(raw)) != "" {
		return strings.TrimSpace(string(raw)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the admin token cannot be read: %w", err)
	}
	secret := make([]byte, 32)
	rand.Read(secret) // never fails
	token := hex.EncodeToString(secret)
	// Written aside and renamed, so that a start that is cut short leaves no half of it.
	if err := os.WriteFile(path+".new", []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("the admin token cannot be written: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", fmt.Errorf("the admin token cannot be written: %w", err)
	}
	return token, nil
}
