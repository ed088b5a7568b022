package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

const (
	pagePath  = "docs/scaling.md"
	costsPath = "cmd/scaling/costs.json"

	// Between these lines the page has what this program prints.
	beginMark = "<!-- go run ./cmd/scaling -->\n"
	endMark   = "<!-- end -->\n"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	c, err := savedCosts()
	if err != nil {
		return fmt.Errorf("scaling: %s: %w", costsPath, err)
	}
	a := defaultAssumptions()
	flags := flag.NewFlagSet("scaling", flag.ContinueOnError)
	bench := flags.String("bench", "", "JSON of make bench: take the costs from there")
	write := flags.Bool("write", false, "keep the costs, and put the tables into "+pagePath+"; run it where go.mod is")
	a.flags(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *bench != "" {
		if c, err = c.readBenchmark(*bench); err != nil {
			return err
		}
	}
	if !*write {
		tables(out, a, c)
		return nil
	}
	return errors.Join(save(c), writePage(c))
}

// flags makes every assumption one.
func (a *assumptions) flags(f *flag.FlagSet) {
	for name, value := range map[string]struct {
		to   *float64
		help string
	}{
		"workspaces": {&a.Workspaces, "connected at the same time"}, "uploads": {&a.Uploads, "files a day and workspace"},
		"file-bytes": {&a.FileBytes, "bytes of a file"}, "messages": {&a.Messages, "messages a day and workspace"},
		"peak": {&a.Peak, "busiest hour over the average"}, "heartbeat": {&a.Heartbeat, "seconds between two heartbeats"},
		"hold": {&a.Hold, "seconds that a poll is held"}, "ack-hours": {&a.AckHours, "hours that a file is there"},
		"row-days": {&a.RowDays, "days that a row of the inbox is kept"}, "row-bytes": {&a.RowBytes, "bytes of a row, with its indexes"},
		"busy": {&a.Busy, "share to which machines are used at the peak"}, "replica-cores": {&a.ReplicaCores, "processors of a replica"},
		"replica-held": {&a.ReplicaHeld, "MAX_WAITS"}, "postgres-cores": {&a.PostgresCores, "processors of a PostgreSQL"},
		"commits": {&a.CommitsLimit, "commits a second of a PostgreSQL"}, "wal": {&a.WALLimit, "MiB of WAL a second of a PostgreSQL"},
		"notes": {&a.NotificationsLimit, "notifications a second of a PostgreSQL"}, "pooled": {&a.Pooled, "sessions of PgBouncer"},
		"bucket-requests": {&a.BucketLimit, "requests a second and prefix of a bucket"},
	} {
		f.Float64Var(value.to, name, *value.to, value.help)
	}
}

// save keeps the costs for the next time.
func save(c costs) error {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("scaling: %w", err)
	}
	return os.WriteFile(costsPath, append(text, '\n'), 0o644)
}

// writePage replaces the tables of the page.
func writePage(c costs) error {
	page, err := os.ReadFile(pagePath)
	if err != nil {
		return fmt.Errorf("scaling: %w", err)
	}
	before, rest, ok := strings.Cut(string(page), beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return fmt.Errorf("scaling: %s has no lines %q and %q", pagePath, beginMark, endMark)
	}
	var b strings.Builder
	tables(&b, defaultAssumptions(), c)
	return os.WriteFile(pagePath, []byte(before+beginMark+b.String()+endMark+after), 0o644)
}
