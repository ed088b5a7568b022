package main

import (
	"fmt"
	"io"
	"math"
)

// tables prints the costs, and the load of a hundredth, a tenth and all of the workspaces, with their files in
// PostgreSQL and in a bucket.
func tables(w io.Writer, a assumptions, c costs) {
	fmt.Fprintf(w, "\nProcessor time of an operation in ms (%s):\n\n| | upload | each further MiB | download | each further MiB | ack | empty poll | heartbeat | check of 500 inboxes |\n|---|---|---|---|---|---|---|---|---|\n", c.Source)
	all := []cost{c.Upload, c.UploadMiB, c.Fetch, c.FetchMiB, c.Ack, c.Poll, c.Heartbeat, c.InboxCheck}
	for _, side := range []struct {
		name string
		of   func(cost) float64
	}{{"platform", func(c cost) float64 { return c.Platform }}, {"PostgreSQL", func(c cost) float64 { return c.Postgres }}} {
		fmt.Fprintf(w, "| %s |", side.name)
		for _, each := range all {
			fmt.Fprintf(w, " %.2f |", side.of(each))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "\nAssumptions: %s uploads of %s KiB and %s messages per day and workspace, the busiest hour with %s times the\n"+
		"average rate; a heartbeat every %s s, polls held for %s s. A replica has %s processors and holds %s polls. One\n"+
		"PostgreSQL has %s processors, and carries %s commits, %s MiB of WAL and %s notifications per second.\n"+
		"The utilization at the peak is %s %%.\n\n",
		figure(a.Uploads), figure(a.FileBytes/1024), figure(a.Messages), figure(a.Peak), figure(a.Heartbeat), figure(a.Hold),
		figure(a.ReplicaCores), figure(a.ReplicaHeld), figure(a.PostgresCores), figure(a.CommitsLimit), figure(a.WALLimit), figure(a.NotificationsLimit), figure(100*a.Busy))
	var columns []demand
	fmt.Fprint(w, "| at the peak |")
	for _, part := range []float64{0.01, 0.1, 1} {
		at := a
		at.Workspaces *= part
		for _, at.Bucket = range []bool{false, true} {
			if at.Bucket && part < 1 {
				continue
			}
			columns = append(columns, at.demand(c))
			fmt.Fprintf(w, " %s%s |", figure(at.Workspaces), map[bool]string{true: ", bucket"}[at.Bucket])
		}
	}
	fmt.Fprintln(w, "\n|---|---|---|---|---|")
	for _, row := range []struct {
		name string
		of   func(demand) string
	}{
		{"uploads, messages per second", func(d demand) string { return figure(d.Uploads) + ", " + figure(d.Messages) }},
		{"polls, heartbeats per second", func(d demand) string { return figure(d.Polls) + ", " + figure(d.Heartbeats) }},
		{"file content, MiB per second", func(d demand) string { return figure(d.InMiB) }},
		{"busy processors: platform, PostgreSQL", func(d demand) string { return figure(d.ReplicaCores) + ", " + figure(d.PostgresCores) }},
		{"replicas (by processors, by held polls)", func(d demand) string {
			return fmt.Sprintf("%s (%s, %s)", figure(d.Replicas), figure(d.ReplicasByCores), figure(d.ReplicasByPolls))
		}},
		{"memory per replica for held polls, GiB", func(d demand) string { return figure(d.HeldGiB) }},
		{"database connections: without a pooler, with one", func(d demand) string { return figure(d.Connections) + ", " + figure(d.Pooled) }},
		{"commits per second", func(d demand) string { return figure(d.Commits) }},
		{"WAL, MiB per second", func(d demand) string { return figure(d.WAL) }},
		{"notifications delivered per second", func(d demand) string { return figure(d.Notifications) }},
		{"stored in PostgreSQL: files, inboxes, GiB", func(d demand) string { return figure(d.StagedGiB) + ", " + figure(d.InboxGiB) }},
		{"bucket: requests per second, prefixes, GiB", func(d demand) string {
			return figure(d.BucketOps) + ", " + figure(d.Prefixes) + ", " + figure(d.BucketGiB)
		}},
		{"**PostgreSQL servers by processors, commits, WAL, notifications**", func(d demand) string {
			return fmt.Sprintf("%.2f, %.2f, %.2f, %.2f", d.ByCores, d.ByCommits, d.ByWAL, d.ByNotifications)
		}},
		{"**PostgreSQL servers needed; exhausted first**", func(d demand) string { return figure(d.Postgres()) + "; " + d.bottleneck() }},
	} {
		fmt.Fprintf(w, "| %s |", row.name)
		for _, d := range columns {
			fmt.Fprintf(w, " %s |", row.of(d))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
}

// figure formats a number with about two digits.
func figure(f float64) string {
	switch {
	case f == 0:
		return "0"
	case math.Abs(f) < 10 && f != math.Trunc(f):
		return fmt.Sprintf("%.2g", f)
	}
	digits := fmt.Sprintf("%.0f", f)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
