package config

import (
	"fmt"
	"strconv"
)

// The bounds of the connection pools. With fewer query connections the sweep, which keeps one while it reclaims space, and
// a few slow statements would stop everything else; with one file connection a large upload would stop all others. More
// than 1000 in one process only queue in PostgreSQL.
//
// The defaults, 12 and 8, let PostgreSQL's default of 100 connections carry three replicas and a fourth during a rolling
// upgrade (internal/database has the table). A replica has few cores and PostgreSQL serves few statements at once, so
// more query connections add no throughput: a statement keeps its connection for about a millisecond, and never while a
// client is waited for. File connections are kept for a whole transaction with its fsync; 8 of them let PostgreSQL write
// several commits with one fsync.
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
