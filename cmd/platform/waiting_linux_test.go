package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

const (
	waitingPolls = 2000

	// waitingBound is in KiB. A poll needs 29; uncollected garbage counts too.
	waitingBound = 44
)

// Planted fault: each poll keeps what it has parsed on its stack.
func TestMemory_HeldPollsCostLittle(t *testing.T) {
	t.Parallel()
	p := serveOn(t, newDatabase(t))
	w := p.create(t, servertest.AdminToken, "poll", "")
	var before int64
	for i := range waitingPolls + 100 {
		if i == 100 { // the platform's own memory has been allocated
			p.holds(t, i)
			before = resident(t, p)
		}
		if i%200 == 0 { // limits the number that wait for a database connection
			p.holds(t, i)
		}
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "GET /workspaces/%s/activity?wait=55 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", w.ID, w.Token); err != nil {
			t.Fatal(err)
		}
	}
	p.holds(t, waitingPolls+100)
	perPoll := float64(resident(t, p)-before) / waitingPolls / 1024
	t.Logf("%d held polls: %.1f MiB in all, %.1f KiB each", waitingPolls, mib(resident(t, p)), perPoll)
	if perPoll > waitingBound {
		t.Errorf("%.1f KiB for a held poll, want at most %d", perPoll, waitingBound)
	}
}

// holds waits until the process holds n polls. The metric counts polls that still query the database, so two checks in
// a row must find no query.
func (p *process) holds(t *testing.T, n int) {
	t.Helper()
	idle := 0
	eventually(t, testTimeout, fmt.Sprintf("%d polls are held", n), func() bool {
		var polls, connections int
		for _, line := range strings.Split(string(p.call(t, servertest.Request{Path: "/metrics"}).Body), "\n") {
			_, _ = fmt.Sscanf(line, `molecule_requests_in_flight{operation="wait"} %d`, &polls)
			_, _ = fmt.Sscanf(line, `go_sql_in_use_connections{db_name="main"} %d`, &connections)
		}
		if idle++; polls < n || connections > 0 {
			idle = 0
		}
		return idle == 2
	})
}

// resident returns the process's current memory, in bytes.
func resident(t *testing.T, p *process) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	var total, pages int64
	if _, err := fmt.Sscan(string(raw), &total, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
