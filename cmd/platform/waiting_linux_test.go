package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

const (
	waitingPolls = 2000

	// waitingBound is in KiB. What is garbage at that moment counts too, so it is more than what a
	// poll needs, which is 29.
	waitingBound = 44
)

// Planted: each poll holds what it has parsed on its stack.
func TestMemory_HeldPollsCostLittle(t *testing.T) {
	t.Parallel()
	p := serveOn(t, newDatabase(t))
	w := p.create(t, servertest.AdminToken, "poll", "")
	var before int64
	for i := range waitingPolls + 100 {
		if i == 100 { // the platform has what it needs for itself
			time.Sleep(time.Second)
			before = resident(t, p)
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
	time.Sleep(2 * time.Second) // what they did to get there is over
	perPoll := float64(resident(t, p)-before) / waitingPolls / 1024
	t.Logf("%d held polls: %.1f MiB in all, %.1f KiB each", waitingPolls, mib(resident(t, p)), perPoll)
	if perPoll > waitingBound {
		t.Errorf("%.1f KiB for a held poll, want at most %d", perPoll, waitingBound)
	}
}

// resident is the memory that the process has now, in bytes.
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
