package server

import (
	"math"
	"strconv"
	"strings"

	"github.com/lib/pq"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/events"
	"github.com/molecule-ai/platform/internal/notify"
)

// openNews prepares what wakes held polls and streams. It has a connection of its own to listen on
// and one to send from: neither waits for the pools, nor takes from them.
func (s *Server) openNews(inbox *activity.Inbox, receipts *events.Log) {
	o := notify.Options{Newest: inbox.Newest, DB: s.telling, DSN: listenDSN(s.direct), Log: s.log}
	if receipts != nil {
		o.NewestReceipts = receipts.NewestReceipts
	}
	s.news = notify.New(o)
}

// unsynced is for a pool that writes nothing that must last. PostgreSQL gives notifications a
// commit like any other; nobody need wait for the disk.
func unsynced(c *pq.Config) {
	c.Runtime["synchronous_commit"] = "off" // after bounded, which made the map
}

// listenDSN is dsn with a limit of the time that connecting may take, unless it has one.
func listenDSN(dsn string) string {
	c, err := pq.NewConfig(dsn)
	if err != nil || c.ConnectTimeout != 0 {
		return dsn
	}
	seconds := connectTimeout.Seconds()
	if len(c.Multi) > 0 {
		seconds = math.Ceil(hostTimeout.Seconds())
	}
	limit := "connect_timeout=" + strconv.Itoa(int(seconds))
	switch {
	case !strings.Contains(dsn, "://"):
		return dsn + " " + limit
	case strings.Contains(dsn, "?"):
		return dsn + "&" + limit
	default:
		return dsn + "?" + limit
	}
}
