package config

import (
	"fmt"
	"strconv"
)

// The bounds of the connection pools. With fewer query connections the sweep, which keeps one while it reclaims space, and
// a few slow statements would stop everything else; with one file connection a large upload would stop all others. More
// than 1000 in one process only queue in PostgreSQL.
//
// The defaults, 11 and 8, let PostgreSQL's default of 100 connections carry three replicas and a fourth during a rolling
// upgrade (internal/database has the table). A statement keeps its connection for about a millisecond, and never while the
// platform waits for a client. Measured with 32 clients on 2 busy cores, 12 query connections carry as much as 24: 1.02
// times the uploads of 1 KiB, 1.1 to 1.2 times the downloads and empty polls (make bench, medians of 5 interleaved rounds).
// File connections are kept for a whole transaction with its fsync; 8 let PostgreSQL write several commits with one fsync.
const (
	minQueryConns = 4
	minFileConns  = 2
	maxConns      = 1000
)

// conns takes the size of a connection pool.
func (l *loader) conns(name, value string, least int) int {
	n, err := strconv.Atoi(value)
	if err != nil || n < least || n > maxConns {
		l.invalid(name, value, fmt.Sprintf("a whole number from %d to %d", least, maxConns))
	}
	return n
}
