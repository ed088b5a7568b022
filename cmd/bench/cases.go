//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
)

const (
	kib = 1 << 10
	mib = 1 << 20

	// stagedBytes is the size of all files staged for downloads, so that not all downloads read the same file.
	stagedBytes = 200 * mib

	// uploaders is the number of workspaces that get uploads in turn. Each has few unacknowledged files, as in
	// production: the quota check reads all of them.
	uploaders = 512
)

// sizes are the files' sizes, and the number of files to acknowledge in the ack cases.
var sizes = []struct {
	bytes, acks int
}{{kib, 64}, {100 * kib, 64}, {5 * mib, 32}, {25 * mib, 16}, {100 * mib, 8}}

var concurrencies = []int{1, 8, 32}

func formatSize(n int) string {
	if n < mib {
		return fmt.Sprintf("%d KiB", n/kib)
	}
	return fmt.Sprintf("%d MiB", n/mib)
}

// fixture is the data of a case: workspaces, and their files and cursors.
type fixture struct {
	workspaces []workspace
	files      []uuid.UUID
	cursors    []string
}

// A caseSet creates cases that share the same random bytes.
type caseSet struct{ data []byte }

// allCases returns the cases of a run.
func allCases() []benchCase {
	s := caseSet{data: make([]byte, 100*mib)}
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(s.data) // never fails
	var cases []benchCase
	for _, size := range sizes {
		for _, n := range concurrencies {
			cases = append(cases, s.uploadCase(size.bytes, n))
		}
	}
	for _, size := range sizes {
		for _, n := range concurrencies {
			cases = append(cases, s.contentCase(size.bytes, n))
		}
	}
	for _, size := range sizes {
		cases = append(cases, s.ackCase(size.bytes, size.acks, 1), s.ackCase(size.bytes, size.acks, 8))
	}
	cases = append(cases, s.ackCase(kib, 64, 8).viaBareServer(), s.contentCase(25*mib, 8).viaBareServer(), s.besideCase())
	for _, n := range concurrencies {
		cases = append(cases, pollCase(n))
	}
	for _, n := range []int{1, 1000, 10_000} {
		cases = append(cases, wakeCase(n))
	}
	return cases
}

// empty removes all files and rows, and runs a checkpoint, so that earlier writes do not slow the next measurement.
func empty(ctx context.Context, p *platform) error {
	if _, err := p.db.ExecContext(ctx, `TRUNCATE pending_uploads, pending_upload_chunks, activity_logs, activity_counters, receipts, receipt_counters`); err != nil {
		return err
	}
	_, err := p.db.ExecContext(ctx, `CHECKPOINT`)
	return err
}

func (s caseSet) uploadCase(size, workers int) benchCase {
	fixtures := map[*platform]*fixture{}
	c := benchCase{
		name: fmt.Sprintf("upload %s × %d", formatSize(size), workers), workers: workers, bytes: size, reset: empty, cleanup: empty,
		prepare: func(ctx context.Context, p *platform) (err error) {
			fixtures[p] = &fixture{}
			fixtures[p].workspaces, err = p.addWorkspaces(ctx, uploaders)
			return err
		},
		platform: func(ctx context.Context, p *platform, _, item int, _ *sample) error {
			return p.upload(ctx, fixtures[p].workspaces[item%uploaders], s.data[:size])
		},
		limit: func(ctx context.Context, p *platform, _, item int, _ *sample) error {
			_, err := p.rawStage(ctx, fixtures[p].workspaces[item%uploaders], s.data[:size])
			return err
		},
	}
	switch {
	case size == 25*mib && workers == 8:
		c.target = 0.8
	case size == kib && workers == 8:
		c.target = 0.6
	case size == 25*mib && workers == 32:
		c.fresh, c.targets = true, map[string]float64{peakMiB: 96}
	}
	return c
}

// staged stages files of a size, distributed over the workspaces in turn.
func (s caseSet) staged(ctx context.Context, p *platform, size, files, workspaces int) (*fixture, error) {
	if err := empty(ctx, p); err != nil {
		return nil, err
	}
	w := &fixture{files: make([]uuid.UUID, files)}
	var err error
	if w.workspaces, err = p.addWorkspaces(ctx, workspaces); err != nil {
		return nil, err
	}
	for i := range w.files {
		if w.files[i], err = p.rawStage(ctx, w.workspaces[i%workspaces], s.data[:size]); err != nil {
			return nil, err
		}
	}
	for _, statement := range []string{`VACUUM ANALYZE pending_uploads, pending_upload_chunks`, `CHECKPOINT`} {
		if _, err := p.db.ExecContext(ctx, statement); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (s caseSet) contentCase(size, workers int) benchCase {
	fixtures := map[*platform]*fixture{}
	files := max(1, min(64, stagedBytes/size))
	c := benchCase{
		name: fmt.Sprintf("content %s × %d", formatSize(size), workers), workers: workers, bytes: size, cleanup: empty,
		prepare: func(ctx context.Context, p *platform) (err error) {
			fixtures[p], err = s.staged(ctx, p, size, files, 1)
			return err
		},
		platform: func(ctx context.Context, p *platform, _, item int, x *sample) error {
			w := fixtures[p]
			return p.content(ctx, w.workspaces[0], w.files[item%files], int64(size), x)
		},
		limit: func(ctx context.Context, p *platform, _, item int, _ *sample) error {
			w := fixtures[p]
			return p.rawRead(ctx, w.workspaces[0], w.files[item%files], int64(size))
		},
	}
	switch {
	case size == 25*mib && workers == 32:
		c.fresh, c.targets = true, map[string]float64{peakMiB: 96}
	case size == 25*mib:
		c.target = 0.8
		if workers == 1 {
			c.targets = map[string]float64{firstByte: 0.1}
		}
	}
	return c
}

func (s caseSet) ackCase(size, files, workers int) benchCase {
	fixtures := map[*platform]*fixture{}
	return benchCase{
		name: fmt.Sprintf("ack %s × %d", formatSize(size), workers), workers: workers, items: files, target: 0.7, cleanup: empty,
		prepare: func(ctx context.Context, p *platform) (err error) {
			fixtures[p], err = s.staged(ctx, p, size, files, files)
			return err
		},
		reset: unack,
		platform: func(ctx context.Context, p *platform, _, item int, _ *sample) error {
			return p.ack(ctx, fixtures[p].workspaces[item], fixtures[p].files[item])
		},
		limit: func(ctx context.Context, p *platform, _, item int, _ *sample) error {
			return p.rawAck(ctx, fixtures[p].workspaces[item], fixtures[p].files[item])
		},
	}
}

// besideCase measures small acks while large files are uploaded as fast as the machine allows. The limit is the same
// acks without the uploads.
func (s caseSet) besideCase() benchCase {
	c := s.ackCase(kib, 64, 1)
	fixtures := map[*platform][]workspace{}
	c.name, c.target, c.targets = "ack 1 KiB beside 32 uploads", 0, map[string]float64{tailRatio: 5}
	prepare := c.prepare
	c.prepare = func(ctx context.Context, p *platform) (err error) {
		if err := prepare(ctx, p); err != nil {
			return err
		}
		fixtures[p], err = p.addWorkspaces(ctx, 32)
		return err
	}
	c.limit, c.besideWorkers = c.platform, 32
	c.beside = func(ctx context.Context, p *platform, worker, _ int, _ *sample) error {
		return p.upload(ctx, fixtures[p][worker], s.data[:25*mib])
	}
	return c
}

// markAllRead gives each workspace one message, and sets its cursor to it.
func (w *fixture) markAllRead(ctx context.Context, p *platform) error {
	w.cursors = make([]string, len(w.workspaces))
	ids := map[uuid.UUID]int{}
	for i, x := range w.workspaces {
		ids[x.id] = i
	}
	_, err := p.db.ExecContext(ctx, `WITH c AS (INSERT INTO activity_counters (workspace_id, last_seq) SELECT id, 1 FROM workspaces ON CONFLICT DO NOTHING RETURNING workspace_id)
		INSERT INTO activity_logs (workspace_id, seq, activity_type) SELECT workspace_id, 1, 'a2a_receive' FROM c`)
	if err != nil {
		return err
	}
	rows, err := p.db.QueryContext(ctx, `SELECT workspace_id, id FROM activity_logs`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var owner uuid.UUID
		var row string
		if err := rows.Scan(&owner, &row); err != nil {
			return err
		}
		if i, ours := ids[owner]; ours {
			w.cursors[i] = row
		}
	}
	return rows.Err()
}

func pollCase(workers int) benchCase {
	fixtures := map[*platform]*fixture{}
	bare := map[*platform]*platform{}
	poll := func(ctx context.Context, p *platform, w *fixture, worker int) error {
		last, err := p.poll(ctx, w.workspaces[worker], w.cursors[worker], 0)
		if err == nil && last != w.cursors[worker] {
			err = errRows
		}
		return err
	}
	return benchCase{
		name: fmt.Sprintf("empty poll × %d", workers), workers: workers, target: 0.6,
		prepare: func(ctx context.Context, p *platform) (err error) {
			w := &fixture{}
			fixtures[p] = w
			if err := empty(ctx, p); err != nil {
				return err
			}
			if w.workspaces, err = p.addWorkspaces(ctx, workers); err != nil {
				return err
			}
			if err := w.markAllRead(ctx, p); err != nil {
				return err
			}
			bare[p], err = startBare(ctx, p.dsn)
			return err
		},
		cleanup: func(ctx context.Context, p *platform) error {
			_ = bare[p].cmd.Process.Kill()
			<-bare[p].exited
			return empty(ctx, p)
		},
		platform: func(ctx context.Context, p *platform, worker, _ int, _ *sample) error {
			return poll(ctx, p, fixtures[p], worker)
		},
		limit: func(ctx context.Context, p *platform, worker, _ int, _ *sample) error {
			return poll(ctx, bare[p], fixtures[p], worker)
		},
	}
}

// A waiter is a poller that repeats held polls.
type waiter struct {
	answered chan time.Time
	failed   chan error
}

// wakeCase measures the time from the commit of a message to its arrival at the poller, while n polls are held.
func wakeCase(n int) benchCase {
	fixtures := map[*platform]*fixture{}
	waiting := map[*platform][]waiter{}
	stops := map[*platform]context.CancelFunc{}
	c := benchCase{
		name: fmt.Sprintf("wake-up, %d waiting", n), workers: 1, rate: 5 * time.Millisecond, fresh: true,
		prepare: func(ctx context.Context, p *platform) (err error) {
			w := &fixture{}
			fixtures[p] = w
			if err := empty(ctx, p); err != nil {
				return err
			}
			if w.workspaces, err = p.addWorkspaces(ctx, n); err != nil {
				return err
			}
			if err := w.markAllRead(ctx, p); err != nil {
				return err
			}
			ctx, stops[p] = context.WithCancel(ctx)
			waiting[p], err = p.waitAll(ctx, w)
			return err
		},
		cleanup: func(ctx context.Context, p *platform) error {
			stops[p]()
			client.CloseIdleConnections()
			return empty(ctx, p)
		},
		platform: func(ctx context.Context, p *platform, _, _ int, s *sample) error {
			i := rand.IntN(n)
			w := fixtures[p].workspaces[i]
			if err := p.send(ctx, w); err != nil {
				return err
			}
			select {
			case at := <-waiting[p][i].answered:
				return p.sinceCommit(ctx, w, at, s)
			case err := <-waiting[p][i].failed:
				return err
			case <-time.After(time.Minute):
				return fmt.Errorf("the held poll did not return within a minute")
			}
		},
	}
	switch n {
	case 1000:
		c.targets = map[string]float64{medianMS: 5, tailMS: 25}
	case 10_000:
		c.targets = map[string]float64{peakMiB: 320}
	}
	return c
}

// waitAll starts a held poll for every workspace, and returns when the platform holds all of them.
func (p *platform) waitAll(ctx context.Context, w *fixture) ([]waiter, error) {
	all := make([]waiter, len(w.workspaces))
	slots := make(chan struct{}, 32)
	for i := range all {
		all[i] = waiter{answered: make(chan time.Time, 1), failed: make(chan error, 1)}
		slots <- struct{}{}
		go func() {
			// An immediate poll first, so that not thousands of connections are opened at once.
			_, err := p.poll(ctx, w.workspaces[i], w.cursors[i], 0)
			<-slots
			for cursor := w.cursors[i]; err == nil; {
				var last string
				if last, err = p.poll(ctx, w.workspaces[i], cursor, 55); err == nil && last != cursor {
					all[i].answered <- time.Now()
					cursor = last
				}
			}
			if ctx.Err() == nil {
				all[i].failed <- err
			}
		}()
	}
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		held, err := p.gauge(ctx, `molecule_requests_in_flight{operation="wait"}`)
		if err != nil || int(held) == len(all) {
			return all, err
		}
	}
}

// gauge reads one of the platform's metrics.
func (p *platform) gauge(ctx context.Context, name string) (value float64, err error) {
	body, err := p.call(ctx, adminToken, http.MethodGet, "/metrics", nil)
	if err != nil {
		return 0, err
	}
	_, rest, found := strings.Cut(string(body), "\n"+name+" ")
	if !found {
		return 0, fmt.Errorf("the platform has no metric %s", name)
	}
	_, err = fmt.Sscanf(rest, "%g", &value)
	return value, err
}

// sinceCommit sets s to the time from the commit of w's newest row, as PostgreSQL recorded it, to read.
func (p *platform) sinceCommit(ctx context.Context, w workspace, read time.Time, s *sample) error {
	var committed time.Time
	err := p.db.QueryRowContext(ctx, `SELECT pg_xact_commit_timestamp(xmin) FROM activity_logs WHERE workspace_id = $1 ORDER BY seq DESC LIMIT 1`,
		w.id).Scan(&committed)
	s.took = max(read.Sub(committed), time.Microsecond)
	return err
}
