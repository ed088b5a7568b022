package database

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/lib/pq"
)

const (
	// A replica that freezes inside a transaction blocks the others, which wait for its locks, until PostgreSQL ends its
	// session. statementTimeout is generous: the largest statement writes one MiB.
	idleInTxTimeout  = 15 * time.Second
	lockTimeout      = 4 * time.Second // less than wsauth waits for a connection to look up a token
	statementTimeout = time.Minute

	connectTimeout = 10 * time.Second

	// hostTimeout replaces connectTimeout if the URL names several servers. They are tried in turn within the caller's
	// deadline, so one that does not answer must leave time for the next.
	hostTimeout = 1500 * time.Millisecond

	// unacknowledgedTimeout is how long a server may leave sent data unacknowledged before its connection is broken.
	// The kernel's own limit is a quarter of an hour.
	unacknowledgedTimeout = 20 * time.Second
)

type option func(*pq.Config)

// limitTimes limits the time of what a pool's sessions do. Limits in the operator's URL take precedence.
func limitTimes(c *pq.Config) {
	limits := map[string]time.Duration{
		"idle_in_transaction_session_timeout": idleInTxTimeout, "lock_timeout": lockTimeout, "statement_timeout": statementTimeout,
	}
	for name, limit := range limits {
		if _, set := c.Runtime[name]; !set {
			setParameter(c, name, strconv.FormatInt(limit.Milliseconds(), 10))
		}
	}
}

// asynchronousCommit is for a pool that writes nothing that has to last. NOTIFY commits like any other statement, and
// need not wait for the disk.
func asynchronousCommit(c *pq.Config) { setParameter(c, "synchronous_commit", "off") }

// binaryParameters makes lib/pq send bytes as they are, instead of as hex. It then reads results as hex, so this is for
// a pool that only writes them. Statements go in one round trip and without a name.
func binaryParameters(c *pq.Config) { c.BinaryParameters = true }

func setParameter(c *pq.Config, name, value string) {
	if c.Runtime == nil {
		c.Runtime = map[string]string{}
	}
	c.Runtime[name] = value
}

// newConnector returns a connector to the database of url.
func newConnector(url string, options ...option) (driver.Connector, error) {
	c, err := pq.NewConfig(url)
	if err != nil { // err may contain the password
		return nil, errors.New("the database URL cannot be read; write postgres://user:password@host:5432/database?sslmode=require")
	}
	for _, apply := range options {
		apply(&c)
	}
	if c.ConnectTimeout == 0 { // lib/pq does not stop waiting for the server's first answer when the context ends
		c.ConnectTimeout = connectTimeout
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
	connector.Dialer(newDialer())
	return confirmCommits(connector), nil
}

// dialer is the net.Dialer of the pools, with the limit of unacknowledgedTimeout where the system has one.
type dialer struct{ net.Dialer }

func newDialer() *dialer { return &dialer{net.Dialer{ControlContext: limitUnacknowledged}} }

// DialTimeout implements pq.Dialer. net.Dialer has a field for it instead.
func (d *dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	limited := d.Dialer
	limited.Timeout = timeout
	return limited.Dial(network, address)
}

// limitConnectTime returns url with a limit of the time that connecting may take, unless it has one. pq.Listener takes
// a URL only.
func limitConnectTime(url string) string {
	c, err := pq.NewConfig(url)
	if err != nil || c.ConnectTimeout != 0 {
		return url
	}
	seconds := connectTimeout.Seconds()
	if len(c.Multi) > 0 {
		seconds = math.Ceil(hostTimeout.Seconds())
	}
	limit := "connect_timeout=" + strconv.Itoa(int(seconds))
	switch {
	case !strings.Contains(url, "://"):
		return url + " " + limit
	case strings.Contains(url, "?"):
		return url + "&" + limit
	default:
		return url + "?" + limit
	}
}
