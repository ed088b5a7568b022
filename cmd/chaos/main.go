//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"sort"
	"strings"
	"syscall"
	"time"
)

// The maximum time to recover from a fault.
const (
	platformRecovery = 5 * time.Second // on an otherwise idle machine
	postgresRecovery = 30 * time.Second
)

func main() {
	o := options{output: os.Stdout}
	flag.StringVar(&o.binary, "platform", "bin/platform", "the compiled platform")
	flag.DurationVar(&o.length, "length", 10*time.Minute, "how long faults are injected")
	flag.Uint64Var(&o.seed, "seed", 0, "seed of all random choices; 0: a new one")
	flag.IntVar(&o.replicas, "replicas", 2, "number of platforms")
	balancer := flag.String("balancer", "", "haproxy: clients connect through HAProxy; empty: each client chooses a platform")
	flag.StringVar(&o.haproxy, "proxy", "deploy/proxy/haproxy.cfg", "HAProxy's configuration file")
	flag.StringVar(&o.old, "old", "", "with -balancer: an older compiled platform that the run starts with, and rolls back to")
	flag.Float64Var(&o.rate, "rate", 130, "files per second that are uploaded while there is no fault")
	flag.BoolVar(&o.keep, "keep", false, "keep the history and the logs even if no problem is found")
	flag.Parse()
	o.recovery = platformRecovery
	switch {
	case *balancer == "" && o.old == "":
		o.haproxy = ""
	case *balancer != "haproxy":
		fmt.Fprintln(os.Stderr, "chaos: -balancer must be haproxy, and -old needs it")
		os.Exit(2)
	}
	if o.seed == 0 {
		o.seed = rand.Uint64N(1 << 32)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := chaos(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		stop()
		os.Exit(1)
	}
}

// chaos executes one run and prints its report. With an error, which lists the problems, the run's folder is kept.
func chaos(ctx context.Context, o options) (err error) {
	if o.dir, err = newDir(); err != nil {
		return err
	}
	fmt.Fprintf(o.output, "chaos: seed %d, %s, history in %s\n", o.seed, o.length, o.dir)
	r, err := newRun(ctx, o)
	if err != nil {
		return err
	}
	fmt.Fprintf(o.output, "  %s\n", r.spool.fillMethod())
	err = r.play(ctx)
	if err == nil {
		err = r.check(context.WithoutCancel(ctx))
	}
	err = errors.Join(err, r.report())
	err = errors.Join(err, r.close())
	if err != nil {
		return fmt.Errorf("%w\nrepeat with: make %s LENGTH=%s SEED=%d; history: %s/history.jsonl", err, o.target(), o.length, o.seed, o.dir)
	}
	if o.keep {
		return nil
	}
	return os.RemoveAll(o.dir)
}

// printProgress prints a line every 10 s until stop is called.
func (r *run) printProgress() (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			all, by := r.history.total()
			r.faults.mu.Lock()
			n, last := len(r.faults.windows), "none yet"
			if n > 0 {
				last = r.faults.windows[n-1].kind
			}
			r.faults.mu.Unlock()
			r.history.mu.Lock()
			acked := r.history.acked
			r.history.mu.Unlock()
			fmt.Fprintf(r.output, "  %4.0f s: %d operations, %d with unknown outcome, %d files acknowledged, %d faults (last: %s), %d problems\n",
				time.Since(r.started).Seconds(), all, by[unknown], acked, n, last, r.history.broken())
		}
	}()
	return func() { close(done); <-ended }
}

// report prints the summary, and returns an error that lists the problems.
func (r *run) report() error {
	h, out := r.history, r.output
	h.mu.Lock()
	defer h.mu.Unlock()
	faults := map[string]int{}
	injected := 0
	for _, w := range r.faults.windows {
		if w.kind != finale {
			faults[w.kind]++
			injected++
		}
	}
	operations := map[string]int{}
	for kind, by := range h.counts {
		for _, n := range by {
			operations[kind] += n
		}
	}
	platform, postgres := recovery(r.faults.windows)
	seconds := r.played.Seconds()
	fmt.Fprintf(out, "seed %d, %s, %d workspaces, %d platforms%s\n", r.seed, r.played.Round(time.Second), workspaces, len(r.replicas), r.topology())
	fmt.Fprintf(out, "operations: %s\n", tally(operations))
	fmt.Fprintf(out, "unknown:    %s\n", tally(unknowns(h.counts)))
	fmt.Fprintf(out, "files acknowledged: %d, %.1f acks/s; unacknowledged at the end: %d\n", h.acked, float64(h.acked)/seconds, r.live)
	fmt.Fprintf(out, "faults: %s\n", tally(faults))
	var counts []string
	for _, v := range verdicts {
		counts = append(counts, fmt.Sprintf("%s %d", v, h.problems[v]))
	}
	fmt.Fprintln(out, strings.Join(counts, ", "))
	fmt.Fprintf(out, "longest recovery: platform %s, PostgreSQL %s\n", short(platform), short(postgres))
	for _, text := range h.first {
		fmt.Fprintln(out, " ", text)
	}

	var wrong []error
	for _, v := range verdicts {
		if n := h.problems[v]; n > 0 {
			wrong = append(wrong, fmt.Errorf("%d %s", n, v))
		}
	}
	if platform > r.recovery {
		wrong = append(wrong, fmt.Errorf("a platform took %s to recover from a fault, more than %s", short(platform), r.recovery))
	}
	if postgres > postgresRecovery {
		wrong = append(wrong, fmt.Errorf("the platforms took %s to recover from a fault of PostgreSQL, more than %s", short(postgres), postgresRecovery))
	}
	if h.acked == 0 || injected == 0 {
		wrong = append(wrong, fmt.Errorf("%d files were acknowledged under %d faults: the run proves nothing", h.acked, injected))
	}
	return errors.Join(wrong...)
}

func unknowns(counts map[string]map[outcome]int) map[string]int {
	n := map[string]int{}
	for kind, by := range counts {
		n[kind] = by[unknown]
	}
	return n
}

// tally formats counts as one line, the sum first.
func tally(counts map[string]int) string {
	var names []string
	sum := 0
	for name, n := range counts {
		names = append(names, name)
		sum += n
	}
	sort.Strings(names)
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %d", name, counts[name])
	}
	return fmt.Sprintf("%d (%s)", sum, strings.Join(names, ", "))
}
