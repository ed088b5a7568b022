//go:build linux

package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"
)

// faults injects faults, one after the other, and measures how long recovery takes.
type faults struct {
	postgres  *postgres
	platforms []*platform
	spool     *spool
	balancer  *balancer // nil: clients choose a platform
	builds    *builds   // nil: only one build
	deck      []fault
	history   *history
	rng       *rand.Rand

	// answered gets a value when an upload was answered with 200.
	answered chan struct{}

	// probe uploads a small file through a replica and reports whether the answer was 200.
	probe func(replica int) bool

	mu      sync.Mutex
	windows []window
	began   chan struct{} // closed when the next fault begins
}

// A window is the time in which a fault excuses failures.
type window struct {
	kind      string
	replicas  []int // that it affects; behind a balancer, which clients see as one replica: 0, or none
	postgres  bool  // a fault of PostgreSQL
	begin     time.Time
	end       time.Time // of the fault
	recovered time.Time // when the first upload after the end was answered with 200
}

// A fault is one kind of fault. do injects it into the replicas, ends it, and returns the time of its end.
type fault struct {
	kind     string
	replicas int // number of replicas that it affects; 0: all
	postgres bool
	graceful bool // behind a balancer no request may fail
	do       func(f *faults, ctx context.Context, replicas []*platform) (end time.Time, err error)
}

// deck holds all kinds of fault.
var deck = []fault{
	{"platform killed", 1, false, false, (*faults).kill},
	{"platforms killed together", 0, false, false, (*faults).kill},
	{"platform stopped in order", 1, false, true, (*faults).restart},
	{"platform frozen", 1, false, false, (*faults).freeze},
	{"clients cut off", 1, false, false, (*faults).cutClients},
	{"disk filled", 0, false, false, (*faults).fillDisk},
	{"database cut off", 1, true, false, (*faults).cutDatabase},
	{"backends ended", 0, true, false, (*faults).endBackends},
	{"PostgreSQL stopped", 0, true, false, (*faults).stopPostgres},
	{"PostgreSQL stopped, platform killed", 0, true, false, (*faults).stopPostgresAndKill},
	{"PostgreSQL paused", 0, true, false, (*faults).pausePostgres},
}

// rolled is another kind, only behind a balancer.
var rolled = fault{"platforms rolled to another build", 0, false, true, (*faults).roll}

const (
	freezeTime   = 3 * time.Second
	pauseTime    = 10 * time.Second
	fullTime     = 2 * time.Second
	probeEvery   = 20 * time.Millisecond
	recoverLimit = 90 * time.Second // after that the run fails
)

// run injects faults for the given time; with everyKind until every kind was injected. No kind is repeated before all
// others were injected.
func (f *faults) run(ctx context.Context, length time.Duration, everyKind bool) error {
	end := time.Now().Add(length)
	var cards []int
	// The run starts without a fault: failures without a fault must show.
	gap := 3 * time.Second
	for n := 0; ; n++ {
		left := time.Until(end)
		if everyKind && n < len(f.deck) {
			left = gap
		}
		if !sleep(ctx, min(gap, left)) || gap > left {
			return nil
		}
		if len(cards) == 0 {
			cards = f.rng.Perm(len(f.deck))
		}
		card := f.deck[cards[0]]
		cards = cards[1:]
		if err := f.inject(card); err != nil {
			return err
		}
		gap = f.gap(card)
	}
}

// gap is the time until the next fault. Sometimes it is almost none; sometimes it is long enough to show whether a
// platform that missed a notification finds the row by polling.
func (f *faults) gap(after fault) time.Duration {
	switch {
	case after.postgres && after.replicas == 1 && f.rng.IntN(2) == 0:
		return heldLimit + 3*time.Second
	case f.rng.IntN(5) == 0:
		return time.Duration(f.rng.IntN(500)) * time.Millisecond
	}
	return time.Duration(1500+f.rng.IntN(5000)) * time.Millisecond
}

// inject injects one fault, ends it and waits until an upload succeeds. It ignores the end of the run.
func (f *faults) inject(card fault) error {
	targets := f.rng.Perm(len(f.platforms))
	if card.replicas > 0 {
		targets = targets[:card.replicas]
	}
	var platforms []*platform
	for _, i := range targets {
		platforms = append(platforms, f.platforms[i])
	}
	affected := targets
	if f.balancer != nil {
		affected = []int{0}
		if card.graceful {
			if err := f.balancer.awaitAll(f.platforms); err != nil {
				return err
			}
			affected = nil
		}
	}
	n := f.begin(window{kind: card.kind, replicas: affected, postgres: card.postgres})
	end, err := card.do(f, context.Background(), platforms)
	if err != nil {
		return errors.Join(errors.New(card.kind), err)
	}
	f.mu.Lock()
	f.windows[n].end = end
	f.mu.Unlock()
	if err := f.awaitRecovery(affected); err != nil {
		return errors.Join(errors.New(card.kind), err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.windows[n].recovered = time.Now()
	f.history.fault(f.windows[n])
	return nil
}

// begin opens a window and wakes those who wait for the next fault.
func (f *faults) begin(w window) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.begin = time.Now()
	f.windows = append(f.windows, w)
	f.history.fault(w)
	if f.began != nil {
		close(f.began)
		f.began = nil
	}
	return len(f.windows) - 1
}

// next is closed when the next fault begins.
func (f *faults) next() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.began == nil {
		f.began = make(chan struct{})
	}
	return f.began
}

// latest returns the last window.
func (f *faults) latest() window {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.windows[len(f.windows)-1]
}

func (f *faults) awaitRecovery(replicas []int) error {
	deadline := time.Now().Add(recoverLimit)
	for _, i := range replicas {
		for !f.probe(i) {
			if time.Now().After(deadline) {
				return errors.New("no upload succeeds after the fault")
			}
			time.Sleep(probeEvery)
		}
	}
	return nil
}

// awaitAnswered waits, every other time, until an upload was just answered with 200. If its files are not on disk yet,
// a fault at this moment loses them.
func (f *faults) awaitAnswered() {
	if f.rng.IntN(2) == 0 {
		return
	}
	select {
	case <-f.answered: // discard an old one
	default:
	}
	select {
	case <-f.answered:
		time.Sleep(f.random(2 * time.Millisecond))
	case <-time.After(time.Second):
	}
}

func (f *faults) random(limit time.Duration) time.Duration {
	return time.Duration(f.rng.Int64N(int64(limit)))
}

func startAll(platforms []*platform) error {
	var errs []error
	for _, p := range platforms {
		errs = append(errs, p.start())
	}
	return errors.Join(errs...)
}

func (f *faults) kill(_ context.Context, platforms []*platform) (time.Time, error) {
	f.awaitAnswered()
	for _, p := range platforms {
		p.kill()
	}
	time.Sleep(f.random(800 * time.Millisecond))
	return time.Now(), startAll(platforms)
}

func (f *faults) restart(_ context.Context, platforms []*platform) (time.Time, error) {
	for _, p := range platforms {
		if err := p.stop(); err != nil {
			f.history.problem(unexpected, "%v", err)
		}
	}
	return time.Now(), startAll(platforms)
}

func (f *faults) freeze(_ context.Context, platforms []*platform) (time.Time, error) {
	for _, p := range platforms {
		p.signal(syscall.SIGSTOP)
	}
	time.Sleep(freezeTime)
	for _, p := range platforms {
		p.signal(syscall.SIGCONT)
	}
	return time.Now(), nil
}

func (f *faults) cutClients(_ context.Context, platforms []*platform) (time.Time, error) {
	if f.balancer != nil {
		f.cut(func(*platform) *proxy { return f.balancer.clients }, platforms[:1])
		return time.Now(), nil
	}
	f.cut(func(p *platform) *proxy { return p.clients }, platforms)
	return time.Now(), nil
}

func (f *faults) cutDatabase(_ context.Context, platforms []*platform) (time.Time, error) {
	f.cut(func(p *platform) *proxy { return p.database }, platforms)
	return time.Now(), nil
}

// cut cuts connections three times, and every other time refuses new ones for a while.
func (f *faults) cut(which func(*platform) *proxy, platforms []*platform) {
	for range 3 {
		down := f.rng.IntN(2) == 0
		f.awaitAnswered()
		for _, p := range platforms {
			which(p).cut(down)
		}
		time.Sleep(f.random(500 * time.Millisecond))
		for _, p := range platforms {
			which(p).up()
		}
		time.Sleep(f.random(300 * time.Millisecond))
	}
}

func (f *faults) fillDisk(context.Context, []*platform) (time.Time, error) {
	free, err := f.spool.fill()
	if err != nil {
		return time.Time{}, err
	}
	time.Sleep(fullTime)
	return time.Now(), free()
}

func (f *faults) endBackends(ctx context.Context, _ []*platform) (time.Time, error) {
	for range 3 {
		f.awaitAnswered()
		if _, err := f.postgres.terminate(ctx, 0.2+0.8*f.rng.Float64()); err != nil {
			return time.Time{}, err
		}
		time.Sleep(f.random(400 * time.Millisecond))
	}
	return time.Now(), nil
}

func (f *faults) stopPostgres(ctx context.Context, _ []*platform) (time.Time, error) {
	f.awaitAnswered()
	if err := f.postgres.stopImmediately(); err != nil {
		return time.Time{}, err
	}
	time.Sleep(f.random(2 * time.Second))
	return time.Now(), f.postgres.start(ctx)
}

func (f *faults) stopPostgresAndKill(ctx context.Context, platforms []*platform) (time.Time, error) {
	f.awaitAnswered()
	if err := f.postgres.stopImmediately(); err != nil {
		return time.Time{}, err
	}
	platforms[0].kill()
	time.Sleep(f.random(time.Second))
	end := time.Now()
	if err := f.postgres.start(ctx); err != nil {
		return end, err
	}
	return end, platforms[0].start()
}

func (f *faults) pausePostgres(context.Context, []*platform) (time.Time, error) {
	resume, err := f.postgres.pause()
	if err != nil {
		return time.Time{}, err
	}
	time.Sleep(pauseTime)
	resume()
	return time.Now(), nil
}
