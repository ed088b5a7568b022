// Package database is everything between the platform and lib/pq: the pools, prepared statements, the check that a
// commit reached the standby, and poolers such as PgBouncer.
//
// Open returns the pools of a platform that serves; OpenCommand returns one pool for a command of the operator.
// Both promise that:
//   - a commit that PostgreSQL could not confirm on a synchronous standby returns ErrUnconfirmed (standby.go);
//   - a connection whose server acknowledges nothing for 20 seconds is broken (Linux only);
//   - if the URL names several servers, one that does not answer costs 1.5 seconds and the next is tried;
//   - errors of Open and OpenCommand are sentences for the operator, and never contain a password.
//
// The pools of a replica, with the default settings:
//
//	pool        connections  through a pooler  used for
//	Queries     11           yes               every statement that is not named below
//	FileWrites  8            yes               transactions that write the bytes of files; their number bounds that memory
//	Metrics     2            yes               /readyz and the backlog in /metrics, also when all other connections are in use
//	Notify      1            never             NOTIFY after a commit
//	Sessions    3            never             advisory locks, VACUUM, reservations of large uploads;
//	                                           only with DirectURL, otherwise the pool Queries
//	(LISTEN)    1            never             the connection that internal/notify opens with ListenURL
//
// So a replica takes at most 23 connections of PostgreSQL, or 21 of a pooler and 5 of PostgreSQL. With PostgreSQL's
// default of 100 connections, 3 of them reserved for superusers, three replicas and a fourth during a rolling upgrade
// leave 5 for commands and psql.
//
// The package knows nothing of the schema, of HTTP, or of where the URLs come from.
package database

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

const (
	// sessionConns bounds the pool Sessions.
	sessionConns = 3

	// commandConns is what a command may need: 'platform storage migrate' moves 4 files at once, each of which takes up
	// to 2 connections.
	commandConns = 12

	connIdleTime = 5 * time.Minute
)

// Config is what Open needs to know.
type Config struct {
	URL        string       // of PostgreSQL, or of a pooler in transaction mode in front of it
	DirectURL  string       // of PostgreSQL itself; "" if URL is not a pooler's
	QueryConns int          // size of the pool Queries; at least 2
	FileConns  int          // size of the pool FileWrites; at least 1
	Log        *slog.Logger // nil: nothing is logged
}

// Pools are the connections of one replica. The package comment says what each pool is for.
type Pools struct {
	Queries    *sql.DB
	FileWrites *sql.DB // binary_parameters=yes: writes bytes as they are, reads them as hex
	Metrics    *sql.DB
	Notify     *sql.DB // synchronous_commit=off
	Sessions   *sql.DB

	listenURL string
	direct    bool // Sessions is a pool of its own, past a pooler
}

// Open opens the pools and checks that they can be used: that the servers answer, and that connections which need a
// session of their own do not share one through a pooler in transaction mode. It warns if a pooler's sessions have no
// time limits.
func Open(ctx context.Context, c Config) (_ *Pools, err error) {
	if c.QueryConns < 2 || c.FileConns < 1 {
		return nil, fmt.Errorf("database: pools of %d and %d connections; at least 2 and 1 are needed", c.QueryConns, c.FileConns)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	p := &Pools{}
	defer func() {
		if err != nil {
			_ = p.Close()
		}
	}()
	if err := p.open(c); err != nil {
		return nil, err
	}
	if err := p.Queries.PingContext(ctx); err != nil {
		if pq.As(err, pqerror.ProtocolViolation) != nil {
			return nil, fmt.Errorf("the database of DATABASE_URL refuses the platform's connection settings: %w; %s", err, poolerAdvice)
		}
		return nil, fmt.Errorf("the database of DATABASE_URL cannot be reached: %w", err)
	}
	if err := p.checkSessions(ctx, c.Log); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Pools) open(c Config) (err error) {
	directURL := c.URL
	openServing := func(n int, options ...option) (*sql.DB, error) {
		return openPool(c.URL, n, append(options, limitTimes)...)
	}
	if c.DirectURL != "" {
		directURL, p.direct = c.DirectURL, true
		openServing = func(n int, _ ...option) (*sql.DB, error) { return openPooled(c.URL, n) }
	}
	p.listenURL = limitConnectTime(directURL)
	if p.Queries, err = openServing(c.QueryConns); err != nil {
		return err
	}
	if p.FileWrites, err = openServing(c.FileConns, binaryParameters); err != nil {
		return err
	}
	if p.Metrics, err = openServing(2); err != nil {
		return err
	}
	if p.Notify, err = openPool(directURL, 1, limitTimes, asynchronousCommit); err != nil {
		return err
	}
	p.Sessions = p.Queries
	if p.direct {
		p.Sessions, err = openPool(directURL, sessionConns, limitTimes)
	}
	return err
}

// ListenURL is the URL for a LISTEN connection. It leads past a pooler, and limits the time that connecting may take.
func (p *Pools) ListenURL() string { return p.listenURL }

// Close closes all pools.
func (p *Pools) Close() error {
	var errs []error
	for _, db := range []*sql.DB{p.Notify, p.Metrics, p.Sessions, p.FileWrites, p.Queries} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// OpenCommand opens a pool for a command of the operator and checks that the server answers. Its statements have no time
// limits: a migration may take as long as it needs. url must lead to PostgreSQL itself, for migrations hold locks of a
// session.
func OpenCommand(ctx context.Context, url string) (*sql.DB, error) {
	db, err := openPool(url, commandConns)
	if err != nil {
		return nil, err
	}
	if err := db.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("the database cannot be reached: %w", err), db.Close())
	}
	return db, nil
}

// openPool opens a pool of at most n connections, each of which is a session of PostgreSQL.
func openPool(url string, n int, options ...option) (*sql.DB, error) {
	connector, err := newConnector(url, options...)
	if err != nil {
		return nil, err
	}
	return newPool(prepareOnce(connector), n), nil
}

func newPool(connector driver.Connector, n int) *sql.DB {
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	db.SetConnMaxIdleTime(connIdleTime)
	return db
}
