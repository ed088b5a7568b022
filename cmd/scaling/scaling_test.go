package main

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The page has what the program prints. Planted faults: another default assumption; another figure in costs.json.
func TestPage_HasWhatTheProgramPrints(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../" + pagePath)
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	if err := run(nil, &want); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), beginMark+want.String()+endMark) {
		t.Errorf("docs/scaling.md is out of date; run go run ./cmd/scaling -write. It should have:\n%s", want.String())
	}
}

// The expected values are computed by hand, from costs that make it easy.
func TestDemand_MatchesAComputationByHand(t *testing.T) {
	t.Parallel()
	one := cost{Platform: 1, Postgres: 2}
	a := defaultAssumptions()
	a.Workspaces, a.Uploads, a.Messages, a.Peak, a.FileBytes, a.Heartbeat, a.Hold = 86_400, 1, 2, 3, 100<<10, 100, 50
	a.ReplicaCores, a.PostgresCores, a.Busy, a.ReplicaHeld = 1, 10, 0.5, 10_000
	d := a.demand(costs{Upload: one, Fetch: one, Ack: one, Poll: one, Heartbeat: one})
	// 3 uploads, fetches and acks, 6 messages, 1728 + 9 polls and 864 heartbeats a second.
	for what, c := range map[string]struct{ got, want float64 }{
		"uploads": {d.Uploads, 3}, "messages": {d.Messages, 6}, "polls": {d.Polls, 1737}, "heartbeats": {d.Heartbeats, 864},
		"cores of replicas": {d.ReplicaCores, 2.616}, "cores of PostgreSQL": {d.PostgresCores, 5.232},
		"replicas": {d.Replicas, 10}, "commits": {d.Commits, 3*3 + 6 + 864}, "PostgreSQL by cores": {d.ByCores, 1.0464},
		"PostgreSQL": {d.Postgres(), 2}, "notes": {d.Notifications, 150}, "files": {d.InMiB, 3 * 100.0 / 1024},
	} {
		if math.Abs(c.got-c.want) > 1e-9 {
			t.Errorf("%s: %v, want %v", what, c.got, c.want)
		}
	}
}

// Twice as many workspaces need twice as much, and with a bucket PostgreSQL does not store the bytes.
func TestDemand_GrowsWithTheWorkspaces(t *testing.T) {
	t.Parallel()
	c, err := savedCosts()
	if err != nil {
		t.Fatal(err)
	}
	a := defaultAssumptions()
	once := a.demand(c)
	a.Workspaces *= 2
	twice := a.demand(c)
	a.Bucket = true
	bucket := a.demand(c)
	if math.Abs(twice.PostgresCores-2*once.PostgresCores) > 1e-6 || math.Abs(twice.WAL-2*once.WAL) > 1e-6 {
		t.Errorf("once %+v, twice %+v", once, twice)
	}
	if bucket.WAL >= twice.WAL/2 || bucket.StagedGiB >= twice.StagedGiB/10 || bucket.BucketGiB != twice.StagedGiB || bucket.InboxGiB != twice.InboxGiB {
		t.Errorf("without %+v, with a bucket %+v", twice, bucket)
	}
}

func TestReadBenchmark_UsesTheMedianAndReportsMissingCases(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bench.json")
	round := func(operations, platform, postgres string) string {
		return `{"operations":` + operations + `,"platform_cpu_s":` + platform + `,"postgres_cpu_s":` + postgres + `}`
	}
	write := func(names ...string) {
		t.Helper()
		var cases []string
		for i, name := range names {
			scale := map[bool]string{true: "4.9", false: "1"}[i%2 == 1]
			cases = append(cases, `{"case":"`+name+`","platform":[`+round("1000", "1", "2")+`,`+round("1000", scale, scale)+`,`+round("10", "9", "9")+`]}`)
		}
		if err := os.WriteFile(path, []byte(`{"cases":[`+strings.Join(cases, ",")+`]}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(caseUpload, caseUploadLarge, caseFetch, caseFetchLarge, caseAck, casePoll)
	c, err := costs{InboxCheck: cost{7, 7}}.readBenchmark(path)
	if err != nil || c.Upload != (cost{1, 2}) || c.InboxCheck != (cost{7, 7}) || c.Heartbeat != c.Ack || c.UploadMiB.Platform <= 0 {
		t.Errorf("%+v, %v", c, err)
	}
	write(caseUpload, caseUploadLarge)
	if _, err := (costs{}).readBenchmark(path); err == nil || !strings.Contains(err.Error(), casePoll) {
		t.Errorf("cases are missing: %v", err)
	}
}
