//go:build linux

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// shortRun is a run beside other tests: all kinds of faults once, with a load that leaves
	// room for others.
	shortRun  = 2 * time.Minute
	shortRate = 40

	// clusterRun is one behind a balancer.
	clusterRun = time.Minute

	lengthVariable = "CHAOS_LENGTH"
	seedVariable   = "CHAOS_SEED"
)

// What `make chaos` does, for 2 minutes; CHAOS_LENGTH and CHAOS_SEED change that.
//
// Planted in the platform, each in a build of its own, and caught by a run of 90 s or less:
//   - the cursor's number from a sequence: the poller passes over rows;
//   - the commit after the answer: files that were answered with 200 are not there;
//   - fetching without the workspace in the predicate: crossed;
//   - a sweep that ignores expires_at: files are gone before they expire;
//   - the newest row, which the news was of, instead of what comes after the cursor;
//   - the idempotency key not looked at: files are announced twice;
//   - a transaction for each file of an upload: uploads announced in part.
func TestChaos_TwoMinutes(t *testing.T) {
	o := fromEnvironment(t, options{length: shortRun, rate: shortRate, replicas: 2, everyKind: true})
	play(t, o)
}

// What `make chaos-cluster` does, for a minute: three platforms behind HAProxy, of which one is killed, all are,
// one freezes, PostgreSQL stops, and all are replaced one after the other, which no request may notice.
//
// Planted in a build of its own: a platform that neither delays its stop nor waits for requests in flight, which then
// fail with nothing broken that excuses it.
func TestChaos_BehindABalancer(t *testing.T) {
	o := fromEnvironment(t, options{length: clusterRun, rate: shortRate, replicas: 3, haproxy: "../../deploy/proxy/haproxy.cfg", everyKind: true})
	for _, f := range append(slices.Clone(deck), rolled) {
		switch f.kind {
		case "platform killed", "platforms killed together", "platform frozen", "PostgreSQL stopped", rolled.kind:
			o.deck = append(o.deck, f)
		}
	}
	play(t, o)
}

// fromEnvironment completes the options of a run.
func fromEnvironment(t *testing.T, o options) options {
	t.Helper()
	o.recovery = 3 * platformRecovery // other tests run beside it
	o.binary, o.seed = build(t), uint64(time.Now().UnixNano())%(1<<32)
	if v := os.Getenv(lengthVariable); v != "" {
		length, err := time.ParseDuration(v)
		if err != nil {
			t.Fatalf("%s: %v", lengthVariable, err)
		}
		o.length = length
	}
	if v := os.Getenv(seedVariable); v != "" {
		seed, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", seedVariable, err)
		}
		o.seed = seed
	}
	return o
}

// play plays a run that must find nothing, and has every kind of fault.
func play(t *testing.T, o options) {
	t.Helper()
	var output bytes.Buffer
	o.output = &output
	err := chaos(t.Context(), o)
	t.Logf("%s", output.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range o.cards() {
		if !strings.Contains(output.String(), f.kind+" ") {
			t.Errorf("there was no fault %q", f.kind)
		}
	}
}

// build builds the platform.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "platform")
	// Without the state of the repository, which is not always there to be read.
	if output, err := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "../../cmd/platform").CombinedOutput(); err != nil {
		t.Fatalf("build the platform: %v\n%s", err, output)
	}
	return binary
}
