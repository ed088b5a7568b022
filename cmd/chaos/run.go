//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	workspaces = 14
	quiet      = 4 // workspaces that get little, so that polls are held for long
	uploaders  = 2 // per workspace that is not quiet
	fetchers   = 3 // per workspace

	adminToken = "the-operators-token-of-a-chaos-run"
	drainLimit = 2 * time.Minute

	// finale is the window in which the platforms are restarted at the end of the run.
	finale = "end of the run"
)

// options configure a run.
type options struct {
	binary   string
	length   time.Duration
	seed     uint64
	recovery time.Duration // maximum time that a platform may take to recover
	rate     float64       // files per second that are uploaded while there is no fault
	dir      string        // of the history, the logs and all data
	keep     bool
	// everyKind extends the run until every kind of fault was injected.
	everyKind bool
	deck      []fault // the kinds of fault; nil: all
	replicas  int
	haproxy   string // HAProxy's configuration file; "": clients choose a platform
	old       string // older compiled platform that the run starts with; "": none
	output    io.Writer
}

// A run is one execution: the processes, the load, the faults and the history.
type run struct {
	options
	ttl      time.Duration // of files
	started  time.Time
	played   time.Duration // until the load was stopped
	history  *history
	postgres *postgres
	spool    *spool
	replicas []*platform
	balancer *balancer // nil: none
	builds   *builds   // nil: only one build
	logs     []*logFile
	janitor  io.Closer
	load     *load
	faults   *faults
	queues   []chan *file
	live     int // files that were readable at the end
}

// stream returns a source of random numbers for one purpose.
func (r *run) stream(purpose, index int) *rand.Rand {
	return rand.New(rand.NewPCG(r.seed, uint64(purpose)<<32|uint64(index)))
}

// janitor unmounts folder $1 when the run's process has ended, which closes the script's standard input. The other
// processes have watchdogs of their own.
const janitor = `read -r _; umount -l "$1" 2>/dev/null`

// newRun starts everything.
func newRun(ctx context.Context, o options) (_ *run, err error) {
	r := &run{options: o, ttl: min(max(o.length/4, 30*time.Second), time.Minute)}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if r.history, err = newHistory(filepath.Join(o.dir, "history.jsonl")); err != nil {
		return nil, err
	}
	if r.postgres, err = startPostgres(ctx, o.dir); err != nil {
		return nil, err
	}
	if r.janitor, err = startJanitor(filepath.Join(o.dir, "spool")); err != nil {
		return nil, err
	}
	if r.spool, err = newSpool(o.dir, r.pids); err != nil {
		return nil, err
	}
	socket, err := r.postgres.socket()
	if err != nil {
		return nil, err
	}
	env := []string{
		"ADMIN_TOKEN=" + adminToken, "SPOOL_DIR=" + r.spool.dir, "DATA_DIR=" + filepath.Join(o.dir, "unused"), "LOG_FORMAT=json",
		"ACK_RETENTION=0s", "SWEEP_INTERVAL=1s", "PENDING_TTL=" + r.ttl.String(), "QUOTA_BYTES=1TiB", "QUOTA_FILES=1000000",
		"RATE_LIMIT=10000", "DRAIN_DELAY=4s",
	}
	first := o.binary
	if o.old != "" {
		first = o.old
	}
	if o.haproxy == "" {
		env = env[:len(env)-1] // nobody looks at /readyz
	} else {
		r.builds = &builds{paths: [2]string{first, o.binary}}
	}
	var addrs []string // for clients
	for i := range o.replicas {
		log, err := newLogFile(filepath.Join(o.dir, fmt.Sprintf("platform-%d.log", i)), func(line string) {
			r.history.problem(unexpected, "a platform logged: %s", line)
		})
		if err != nil {
			return nil, err
		}
		r.logs = append(r.logs, log)
		p, err := newPlatform(i, first, socket, env, log, func(format string, args ...any) {
			r.history.problem(unexpected, format, args...)
		})
		if err != nil {
			return nil, err
		}
		r.replicas, addrs = append(r.replicas, p), append(addrs, p.clients.addr())
	}
	if err := r.replicas[0].run("migrate", "up"); err != nil {
		return nil, err
	}
	if err := startAll(r.replicas); err != nil {
		return nil, err
	}
	if o.haproxy != "" {
		if r.balancer, err = startBalancer(o.haproxy, o.dir, r.replicas); err != nil {
			return nil, err
		}
		addrs = []string{r.balancer.clients.addr()}
	}
	c := newClients(r.history, addrs)
	r.faults = &faults{
		postgres: r.postgres, platforms: r.replicas, spool: r.spool, history: r.history, rng: r.stream(0, 0),
		balancer: r.balancer, builds: r.builds, deck: o.cards(),
		answered: make(chan struct{}, 1),
		probe:    r.prober(r.stream(0, 1)),
	}
	busy := float64((workspaces - quiet) * uploaders)
	pace := time.Duration(busy * (1 + maxParts) / 2 / o.rate * float64(time.Second))
	r.load = &load{clients: c, history: r.history, pace: pace, faults: r.faults}
	return r, r.createWorkspaces()
}

// cards returns the kinds of fault of this run.
func (o options) cards() []fault {
	switch {
	case o.deck != nil:
		return o.deck
	case o.haproxy != "":
		return append(slices.Clone(deck), rolled)
	default:
		return deck
	}
}

func (r *run) pids() []int {
	var pids []int
	for _, p := range r.replicas {
		pids = append(pids, p.pid())
	}
	return pids
}

func startJanitor(dir string) (io.Closer, error) {
	cmd := exec.Command("/bin/sh", "-c", janitor, "sh", dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C must not reach it
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return stdin, cmd.Start()
}

// createWorkspaces waits until all platforms serve, and makes the workspaces.
func (r *run) createWorkspaces() error {
	for _, p := range r.replicas {
		if err := awaitReady(p); err != nil {
			return err
		}
	}
	if r.balancer != nil {
		if err := r.balancer.awaitAll(r.replicas); err != nil {
			return err
		}
	}
	for i := range workspaces {
		w := &workspace{index: i, quiet: i < quiet, files: map[string]*file{}}
		req, err := http.NewRequest(http.MethodPost, "http://"+r.replicas[0].clients.addr()+"/workspaces",
			strings.NewReader(fmt.Sprintf(`{"name":"w%d","delivery_mode":"poll"}`, i)))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+adminToken)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		var made struct {
			ID    string `json:"id"`
			Token string `json:"auth_token"`
		}
		err = json.NewDecoder(resp.Body).Decode(&made)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusCreated {
			return fmt.Errorf("create a workspace: %d %w", resp.StatusCode, err)
		}
		w.id, w.token = made.ID, made.Token
		r.load.all = append(r.load.all, w)
	}
	return nil
}

func awaitReady(p *platform) error {
	for deadline := time.Now().Add(startLimit); time.Now().Before(deadline); time.Sleep(probeEvery) {
		resp, err := http.Get("http://" + p.clients.addr() + "/readyz")
		if err != nil {
			continue
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return nil
		}
	}
	return fmt.Errorf("platform %d is not ready after %s; see its log", p.index, startLimit)
}

// prober returns what tries whether a replica takes an upload: all of the way to the disk.
func (r *run) prober(rng *rand.Rand) func(int) bool {
	return func(replica int) bool {
		w := r.load.all[quiet+rng.IntN(workspaces-quiet)]
		return r.load.sendUpload(w, w.newUpload(rng, 1, false), replica, 5*time.Second) == ok
	}
}

// play runs load and faults for the length of the run, and lets all come to rest.
func (r *run) play(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.started = time.Now()
	var sending, reading sync.WaitGroup
	polling, rest := context.WithCancel(context.Background())
	defer rest()
	for _, w := range r.load.all {
		queue := make(chan *file, 1<<16)
		r.queues = append(r.queues, queue)
		poller := &poller{load: r.load, w: w, rng: r.stream(1, w.index), path: cursorPath(r.dir, w), ttl: r.ttl, queue: queue}
		reading.Go(func() { poller.run(polling) })
		for i := range fetchers {
			f := &fetcher{load: r.load, w: w, rng: r.stream(2, w.index*fetchers+i)}
			reading.Go(func() { f.run(queue) })
		}
		if w.quiet {
			sending.Go(func() { r.load.sendToQuiet(ctx, r.stream(3, w.index), w) })
			continue
		}
		for i := range uploaders {
			sending.Go(func() { r.load.upload(ctx, r.stream(4, w.index*uploaders+i), w) })
		}
		sending.Go(func() { r.load.message(ctx, r.stream(5, w.index), w) })
		sending.Go(func() { r.load.probeAccess(ctx, r.stream(6, w.index), w) })
	}
	stopProgress := r.printProgress()
	err := r.faults.run(ctx, r.length, r.everyKind)
	cancel()
	r.played = time.Since(r.started)
	sending.Wait()
	err = errors.Join(err, r.settle())
	rest()
	done := make(chan struct{})
	go func() { reading.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(drainLimit):
		err = errors.Join(err, fmt.Errorf("the pollers have not drained their inboxes %s after the end", drainLimit))
	}
	stopProgress()
	return err
}

// settle stops and starts all platforms gracefully, so that no abandoned request is still running.
func (r *run) settle() error {
	n := r.faults.begin(window{kind: finale})
	for _, p := range r.replicas {
		if err := p.stop(); err != nil {
			r.history.problem(unexpected, "%v", err)
		}
	}
	for deadline := time.Now().Add(endLimit); ; time.Sleep(probeEvery) {
		sessions, err := r.postgres.platformSessions(context.Background())
		if err == nil && sessions == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d database sessions are left %s after the platforms exited (%w)", sessions, endLimit, err)
		}
	}
	if err := startAll(r.replicas); err != nil {
		return err
	}
	for _, p := range r.replicas {
		if err := awaitReady(p); err != nil {
			return err
		}
	}
	if r.balancer != nil {
		if err := r.balancer.awaitAll(r.replicas); err != nil {
			return err
		}
	}
	r.faults.mu.Lock()
	defer r.faults.mu.Unlock()
	r.faults.windows[n].end, r.faults.windows[n].recovered = time.Now(), time.Now()
	return nil
}

// check verifies the history, the files and the tables.
func (r *run) check(ctx context.Context) error {
	deadline := time.Now().Add(5 * time.Second) // files that expire sooner are not checked
	for _, w := range r.load.all {
		r.live += r.load.checkLive(w, deadline)
	}
	for _, p := range r.replicas {
		if err := p.stop(); err != nil {
			r.history.problem(unexpected, "%v", err)
		}
	}
	if size, names, err := r.spool.files(); err != nil || size > 0 {
		r.history.problem(unexpected, "%d bytes are left in SPOOL_DIR: %q %v", size, names, err)
	}
	(&judge{history: r.history, windows: r.faults.windows, all: r.load.all}).run()
	return checkTables(ctx, r.postgres.db, r.history, r.load.all)
}

// close stops everything.
func (r *run) close() error {
	var errs []error
	if r.load != nil {
		r.load.clients.close()
	}
	if r.balancer != nil {
		errs = append(errs, r.balancer.close())
	}
	for _, p := range r.replicas {
		p.close()
	}
	for _, l := range r.logs {
		errs = append(errs, l.close())
	}
	if r.postgres != nil {
		errs = append(errs, r.postgres.stop())
	}
	if r.spool != nil {
		errs = append(errs, r.spool.close())
	}
	if r.janitor != nil {
		errs = append(errs, r.janitor.Close())
	}
	if r.history != nil {
		errs = append(errs, r.history.close())
	}
	return errors.Join(errs...)
}

// newDir makes the folder of a run. PostgreSQL, which refuses to run as root, must be able to enter it.
func newDir() (string, error) {
	dir, err := os.MkdirTemp("", "chaos-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o711)
}
