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
	// shortRun injects every kind of fault once, under a load that leaves the machine to other tests.
	shortRun  = 2 * time.Minute
	shortRate = 40

	// clusterRun is the length of the run behind HAProxy.
	clusterRun = time.Minute

	lengthVariable = "CHAOS_LENGTH"
	seedVariable   = "CHAOS_SEED"
)

// Runs `make chaos` for 2 minutes; CHAOS_LENGTH and CHAOS_SEED change that.
//
// Faults planted in the platform, each in its own build, and found by a run of 90 s or less:
//   - the cursor's number from a sequence: the poller skips rows;
//   - the commit after the answer: files answered with 200 are lost;
//   - a download without the workspace in the predicate: crossed;
//   - a sweep that ignores expires_at: files are gone before they expire;
//   - a held poll that returns the row of the notification instead of the rows after its cursor;
//   - the idempotency key ignored: files are announced twice;
//   - one transaction per file of an upload: uploads announced in part.
func TestChaos_TwoMinutes(t *testing.T) {
	o := fromEnvironment(t, options{length: shortRun, rate: shortRate, replicas: 2, everyKind: true})
	play(t, o)
}

// Runs `make chaos-cluster` for a minute: three platforms behind HAProxy. One is killed, all are killed, one freezes,
// PostgreSQL stops, and all are replaced one after the other, during which no request may fail.
//
// Planted fault: a platform that neither delays its stop nor waits for requests in flight. They fail without a fault
// that excuses them.
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

// fromEnvironment completes the options from CHAOS_LENGTH and CHAOS_SEED.
func fromEnvironment(t *testing.T, o options) options {
	t.Helper()
	o.recovery = 3 * platformRecovery // other tests use the machine too
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

// play executes a run, which must find no problem and inject every kind of fault.
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
			t.Errorf("the fault %q was not injected", f.kind)
		}
	}
}

// build builds the platform.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "platform")
	// -buildvcs=false: the git repository is not always readable.
	if output, err := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "../../cmd/platform").CombinedOutput(); err != nil {
		t.Fatalf("build the platform: %v\n%s", err, output)
	}
	return binary
}
