package main

import (
	"fmt"
	"io"
	"math"
)

// tables prints the costs, and what a hundredth, a tenth and all of the workspaces come to, with their files in
// PostgreSQL and in a bucket.
func tables(w io.Writer, a assumptions, c costs) {
	fmt.Fprintf(w, "\nProcessor time of an operation in ms (%s):\n\n| | upload | a MiB more | fetch | a MiB more | ack | empty poll | heartbeat | look at 500 |\n|---|---|---|---|---|---|---|---|---|\n", c.Source)
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
	fmt.Fprintf(w, "\nA workspace uploads %s files of %s KiB and gets %s messages a day, the busiest hour has %s times the average; a heartbeat every %s s, polls held for %s s. "+
		"Replicas have %s processors and hold %s polls, PostgreSQL has %s, %s commits and %s MiB of WAL a second, and passes on %s notifications; all are used to %s %%.\n\n",
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
		{"uploads, messages a second", func(d demand) string { return figure(d.Uploads) + ", " + figure(d.Messages) }},
		{"polls, heartbeats a second", func(d demand) string { return figure(d.Polls) + ", " + figure(d.Heartbeats) }},
		{"files, MiB a second", func(d demand) string { return figure(d.InMiB) }},
		{"processors: platform, PostgreSQL", func(d demand) string { return figure(d.ReplicaCores) + ", " + figure(d.PostgresCores) }},
		{"replicas (by processors, by held polls)", func(d demand) string {
			return fmt.Sprintf("%s (%s, %s)", figure(d.Replicas), figure(d.ReplicasByCores), figure(d.ReplicasByPolls))
		}},
		{"memory of a replica for polls, GiB", func(d demand) string { return figure(d.HeldGiB) }},
		{"connections without a pooler, with one", func(d demand) string { return figure(d.Connections) + ", " + figure(d.Pooled) }},
		{"commits a second", func(d demand) string { return figure(d.Commits) }},
		{"WAL, MiB a second", func(d demand) string { return figure(d.WAL) }},
		{"notifications delivered a second", func(d demand) string { return figure(d.Notifications) }},
		{"in PostgreSQL: files, inbox, GiB", func(d demand) string { return figure(d.StagedGiB) + ", " + figure(d.InboxGiB) }},
		{"bucket: requests a second, prefixes, GiB", func(d demand) string {
			return figure(d.BucketOps) + ", " + figure(d.Prefixes) + ", " + figure(d.BucketGiB)
		}},
		{"**PostgreSQL by processors, commits, WAL, news**", func(d demand) string {
			return fmt.Sprintf("%.2f, %.2f, %.2f, %.2f", d.ByCores, d.ByCommits, d.ByWAL, d.ByNotifications)
		}},
		{"**how many PostgreSQL; what runs out first**", func(d demand) string { return figure(d.Postgres()) + "; " + d.bottleneck() }},
	} {
		fmt.Fprintf(w, "| %s |", row.name)
		for _, d := range columns {
			fmt.Fprintf(w, " %s |", row.of(d))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
}

// figure is a number as a person reads it, in two digits or so.
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
