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

	// The page has this program's output between these lines.
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
	bench := flags.String("bench", "", "use the costs in this JSON file of make bench")
	write := flags.Bool("write", false, "save the costs, and write the tables to "+pagePath+"; run it in the folder of go.mod")
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

// flags defines a flag for every assumption.
func (a *assumptions) flags(f *flag.FlagSet) {
	for name, value := range map[string]struct {
		to   *float64
		help string
	}{
		"workspaces": {&a.Workspaces, "number of connected workspaces"}, "uploads": {&a.Uploads, "uploaded files per day and workspace"},
		"file-bytes": {&a.FileBytes, "average size of a file in bytes"}, "messages": {&a.Messages, "messages per day and workspace"},
		"peak": {&a.Peak, "ratio of the busiest hour's rate to the average"}, "heartbeat": {&a.Heartbeat, "seconds between two heartbeats"},
		"hold": {&a.Hold, "seconds for which a poll is held"}, "ack-hours": {&a.AckHours, "hours for which a file is stored, staged and acknowledged"},
		"row-days": {&a.RowDays, "days for which an inbox row is stored"}, "row-bytes": {&a.RowBytes, "bytes of an inbox row, with its indexes"},
		"busy": {&a.Busy, "utilization of machines at the peak, from 0 to 1"}, "replica-cores": {&a.ReplicaCores, "processors of a replica"},
		"replica-held": {&a.ReplicaHeld, "held polls per replica (MAX_WAITS)"}, "postgres-cores": {&a.PostgresCores, "processors of one PostgreSQL"},
		"commits": {&a.CommitsLimit, "commits per second of one PostgreSQL"}, "wal": {&a.WALLimit, "MiB of WAL per second of one PostgreSQL"},
		"notes": {&a.NotificationsLimit, "notifications per second of one PostgreSQL"}, "pooled": {&a.Pooled, "sessions that PgBouncer opens"},
		"bucket-requests": {&a.BucketLimit, "requests per second and prefix of a bucket"},
	} {
		f.Float64Var(value.to, name, *value.to, value.help)
	}
}

// save writes the costs to costsPath.
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
