//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A benchCase is one operation that is measured, through the platform and at the limit.
type benchCase struct {
	name    string
	workers int
	bytes   int           // of file content that one operation transfers
	items   int           // number of operations until reset is needed; 0: unlimited
	rate    time.Duration // minimum time between two operations of a worker
	fresh   bool          // restart the platform first, so that its peak memory is this case's
	target  float64       // minimum ratio of the platform's rate to the limit's
	targets map[string]float64

	prepare       func(ctx context.Context, p *platform) error // before a round
	reset         func(ctx context.Context, p *platform) error // before each pass; not timed
	cleanup       func(ctx context.Context, p *platform) error // after a round
	platform      operation
	limit         operation // nil: no limit
	beside        operation // runs at the same time as platform, by besideWorkers workers, and is not measured
	besideWorkers int
}

// An operation does one thing once; worker and item count from 0. It may set fields of s; otherwise only its duration
// is recorded.
type operation func(ctx context.Context, p *platform, worker, item int, s *sample) error

// A sample is one operation.
type sample struct {
	took  time.Duration
	first time.Duration // until the first byte of a file
}

// A result is the outcome of one measurement.
type result struct {
	Operations int     `json:"operations"`
	Seconds    float64 `json:"seconds"`
	Rate       float64 `json:"per_second"`
	P50        float64 `json:"p50_ms"`
	P95        float64 `json:"p95_ms"`
	P99        float64 `json:"p99_ms"`
	First      float64 `json:"first_byte_p50_ms,omitempty"`
	PeakMiB    float64 `json:"peak_mib,omitempty"` // of the platform
	PlatformS  float64 `json:"platform_cpu_s"`
	PostgresS  float64 `json:"postgres_cpu_s"`
}

// measureBeside is measure while c.beside runs.
func (c *benchCase) measureBeside(ctx context.Context, s *stack, p *platform, length time.Duration) (result, error) {
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	failed := make(chan error, c.besideWorkers)
	for worker := range c.besideWorkers {
		wait.Go(func() {
			for item := 0; ctx.Err() == nil; item++ {
				if err := c.beside(ctx, p, worker, item, &sample{}); err != nil && ctx.Err() == nil {
					failed <- err
					return
				}
			}
		})
	}
	time.Sleep(time.Second) // until all workers are busy
	r, err := c.measure(ctx, s, p, c.platform, length)
	cancel()
	wait.Wait()
	select {
	case beside := <-failed:
		err = errors.Join(err, beside)
	default:
	}
	return r, err
}

// measure runs op for about length.
func (c *benchCase) measure(ctx context.Context, s *stack, p *platform, op operation, length time.Duration) (result, error) {
	if err := p.resetPeak(); err != nil {
		return result{}, err
	}
	before, err := s.cpu(p)
	if err != nil {
		return result{}, err
	}
	var samples []sample
	var took time.Duration
	for pass := 0; took < length; pass++ {
		if c.reset != nil {
			if err := c.reset(ctx, p); err != nil {
				return result{}, fmt.Errorf("reset: %w", err)
			}
		}
		start := time.Now()
		some, err := c.pass(ctx, p, op, length-took)
		took += time.Since(start)
		samples = append(samples, some...)
		if err != nil {
			return result{}, err
		}
		if len(some) == 0 {
			return result{}, errors.New("no operation ended")
		}
	}
	after, err := s.cpu(p)
	if err != nil {
		return result{}, err
	}
	peak, err := p.peak()
	if err != nil {
		return result{}, err
	}
	r := result{
		Operations: len(samples), Seconds: took.Seconds(), Rate: float64(len(samples)) / took.Seconds(), PeakMiB: peak,
		PlatformS: after.platform - before.platform, PostgresS: after.postgres - before.postgres,
	}
	times, firsts := make([]time.Duration, len(samples)), make([]time.Duration, len(samples))
	for i, x := range samples {
		times[i], firsts[i] = x.took, x.first
	}
	slices.Sort(times)
	slices.Sort(firsts)
	r.P50, r.P95, r.P99 = percentile(times, 50), percentile(times, 95), percentile(times, 99)
	r.First = percentile(firsts, 50)
	return r, nil
}

// pass runs op with all workers until the time is over or the items are used up.
func (c *benchCase) pass(ctx context.Context, p *platform, op operation, length time.Duration) ([]sample, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wait sync.WaitGroup
		mu   sync.Mutex
		all  []sample
		next int
	)
	deadline := time.Now().Add(length)
	take := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		item := next
		next++
		return item, ctx.Err() == nil && (c.items > 0 && item < c.items || c.items == 0 && time.Now().Before(deadline))
	}
	for worker := range c.workers {
		wait.Go(func() {
			for {
				item, more := take()
				if !more {
					return
				}
				var s sample
				start := time.Now()
				err := op(ctx, p, worker, item, &s)
				if s.took == 0 {
					s.took = time.Since(start)
				}
				if err != nil {
					cancel(fmt.Errorf("%s: %w", c.name, err))
					return
				}
				mu.Lock()
				all = append(all, s)
				mu.Unlock()
				if c.rate > 0 {
					time.Sleep(c.rate - min(c.rate, time.Since(start)))
				}
			}
		})
	}
	wait.Wait()
	return all, context.Cause(ctx)
}

// percentile returns the p-th percentile of sorted times, in milliseconds.
func percentile(sorted []time.Duration, p int) float64 {
	i := (len(sorted)*p + 99) / 100
	return float64(sorted[max(i, 1)-1]) / float64(time.Millisecond)
}

// cpuTimes are CPU times in seconds.
type cpuTimes struct{ platform, postgres float64 }

// clockTick is a hundredth of a second on every Linux that Go runs on.
const clockTick = 100

// cpu returns the CPU time that the platform and PostgreSQL have used.
func (s *stack) cpu(p *platform) (cpuTimes, error) {
	entries, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return cpuTimes{}, err
	}
	var t cpuTimes
	server := strconv.Itoa(s.postgres.Pid())
	for _, name := range entries {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		pid, _, _ := strings.Cut(string(raw), " ")
		// The program's name, in parentheses, may contain any character.
		fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
		var used float64
		// utime and stime; for the postmaster also those of its exited children.
		for _, i := range []int{11, 12, 13, 14} {
			n, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return cpuTimes{}, fmt.Errorf("%s: %w", name, err)
			}
			if i < 13 || pid == server {
				used += n / clockTick
			}
		}
		switch {
		case pid == strconv.Itoa(p.cmd.Process.Pid):
			t.platform = used
		case pid == server, fields[1] == server:
			t.postgres += used
		}
	}
	return t, nil
}

// resetPeak resets the peak of the platform's memory to its present size.
func (p *platform) resetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0)
}

// peak returns the platform's peak memory since resetPeak, in MiB.
func (p *platform) peak() (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kib float64
	if _, err := fmt.Sscanf(rest, "%f kB", &kib); err != nil {
		return 0, fmt.Errorf("VmHWM of the platform: %w", err)
	}
	return kib / 1024, nil
}
