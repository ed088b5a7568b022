//go:build linux

package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

const (
	// A grown database has 100 rows and 10 files per workspace.
	grownWorkspaces   = 10_000
	grownIdle         = 90_000 // and as many more whose inboxes are empty
	rowsPerWorkspace  = 100
	filesPerWorkspace = 10

	// askedWorkspaces is the number of workspaces that poll, growthWorkers the number of those that get uploads, so
	// that the polls stay empty. A small database has no other workspaces.
	askedWorkspaces = 32
	growthWorkers   = 4

	// sweptFiles is the number of files that each sweep deletes.
	sweptFiles = 64

	// prunedRows is how many rows of prunedInboxes inboxes are pruned at a time.
	prunedRows, prunedInboxes = 640, 32

	// grownRatio is the minimum ratio of the rate on a grown database to the rate on a small one.
	grownRatio = 1 / 1.5
)

// measureGrowth compares the operations of clients and of the sweep on a grown and on a small database.
func (r *report) measureGrowth(ctx context.Context, o options, s *stack, small *platform) error {
	grown, err := s.startPlatform(ctx, o.binary, "grown")
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%d rows and %d files of %d workspaces are written\n",
		grownWorkspaces*rowsPerWorkspace, grownWorkspaces*filesPerWorkspace, grownWorkspaces)
	asked := map[*platform]*fixture{}
	for p, n := range map[*platform]int{small: askedWorkspaces + growthWorkers, grown: grownWorkspaces} {
		if asked[p], err = p.grow(ctx, n); err != nil {
			return err
		}
	}
	r.limit = "small"
	cases := growthCases(asked, small)
	for i := range cases {
		r.Findings = append(r.Findings, &caseResult{Case: cases[i].name, target: cases[i].target})
	}
	for round := range o.rounds {
		for i := range cases {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, o.rounds, cases[i].name)
			if err := cases[i].run(ctx, o, s, grown, &r.Findings[i].Platform, &r.Findings[i].Limit); err != nil {
				return err
			}
		}
	}
	return nil
}

// grow fills the database for n workspaces, and returns those that poll.
func (p *platform) grow(ctx context.Context, n int) (*fixture, error) {
	workspaces, err := p.addWorkspaces(ctx, n)
	if err != nil {
		return nil, err
	}
	idle := 0
	if n == grownWorkspaces {
		idle = grownIdle
	}
	for _, statement := range []string{
		fmt.Sprintf(`INSERT INTO activity_counters (workspace_id, last_seq) SELECT id, %d FROM workspaces`, rowsPerWorkspace),
		fmt.Sprintf(`INSERT INTO activity_counters (workspace_id, last_seq) SELECT gen_random_uuid(), 0 FROM generate_series(1, %d)`, idle),
		// In a realistic order: the first rows of all workspaces first.
		fmt.Sprintf(`INSERT INTO activity_logs (workspace_id, seq, activity_type, target_id, method, summary, request_body, body_bytes, status, created_at)
			SELECT w.id, n, 'a2a_receive', w.id, 'message/send', 'hello', '%s', 200, 'ok', now() - (%d - n) * interval '1 minute'
			FROM generate_series(1, %[2]d) n, workspaces w`, rawBody, rowsPerWorkspace),
		fmt.Sprintf(`INSERT INTO pending_uploads (workspace_id, filename, mimetype, size_bytes, sha256, content)
			SELECT w.id, 'bench.bin', 'application/octet-stream', %d, decode(repeat('00', 32), 'hex'), decode(repeat(md5(w.id::text || n), %d), 'hex')
			FROM generate_series(1, %d) n, workspaces w`, kib, kib/16, filesPerWorkspace),
		`VACUUM ANALYZE`, `CHECKPOINT`,
	} {
		if _, err := p.db.ExecContext(ctx, statement); err != nil {
			return nil, err
		}
	}
	w := &fixture{workspaces: workspaces[:askedWorkspaces+growthWorkers], cursors: make([]string, askedWorkspaces), files: make([]uuid.UUID, askedWorkspaces)}
	for i, x := range w.workspaces[:askedWorkspaces] {
		err := errors.Join(
			p.db.QueryRowContext(ctx, `SELECT id FROM activity_logs WHERE workspace_id = $1 AND seq = $2`, x.id, rowsPerWorkspace).Scan(&w.cursors[i]),
			p.db.QueryRowContext(ctx, `SELECT file_id FROM pending_uploads WHERE workspace_id = $1 LIMIT 1`, x.id).Scan(&w.files[i]))
		if err != nil {
			return nil, err
		}
	}
	return w, nil
}

// growthCases run on the grown platform; their limit is the small one.
func growthCases(asked map[*platform]*fixture, small *platform) []benchCase {
	beside := func(op operation) (grown, limit operation) {
		return op, func(ctx context.Context, _ *platform, worker, item int, s *sample) error {
			return op(ctx, small, worker, item, s)
		}
	}
	make := func(name string, op operation) benchCase {
		c := benchCase{name: name, workers: growthWorkers, target: grownRatio}
		c.platform, c.limit = beside(op)
		return c
	}
	ack := make("ack", func(ctx context.Context, p *platform, _, item int, _ *sample) error {
		return p.ack(ctx, asked[p].workspaces[item], asked[p].files[item])
	})
	ack.items = askedWorkspaces
	ack.reset = func(ctx context.Context, p *platform) error {
		return errors.Join(unack(ctx, p), unack(ctx, small))
	}
	sweep := make(fmt.Sprintf("sweep of %d files", sweptFiles), func(ctx context.Context, p *platform, _, _ int, _ *sample) error {
		storage := pendinguploads.NewPostgres(p.db, p.writes, activity.New(p.db), pendinguploads.Limits{})
		swept, err := storage.Sweep(ctx, time.Hour)
		if err == nil && swept.Acked != sweptFiles {
			err = fmt.Errorf("%+v was swept, want %d acknowledged files", swept, sweptFiles)
		}
		return err
	})
	sweep.workers, sweep.items = 1, 1
	sweep.reset = func(ctx context.Context, p *platform) error {
		var errs []error
		for _, db := range []*sql.DB{p.db, small.db} {
			_, err := db.ExecContext(ctx, `DELETE FROM pending_uploads WHERE acked_at < now() - interval '2 hours'`)
			errs = append(errs, err)
			_, err = db.ExecContext(ctx, `INSERT INTO pending_uploads (workspace_id, filename, mimetype, size_bytes, sha256, content, acked_at)
				SELECT w.id, 'bench.bin', 'text/plain', 5, decode(repeat('00', 32), 'hex'), 'hello', now() - interval '3 hours' FROM (SELECT id FROM workspaces LIMIT 32) w, generate_series(1, $1)`,
				sweptFiles/askedWorkspaces)
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	prune := func(want int) operation {
		return func(ctx context.Context, p *platform, _, _ int, _ *sample) error {
			n, more, err := activity.New(p.db).Prune(ctx, 7*24*time.Hour, 30*24*time.Hour)
			if err == nil && (n != want || more) {
				err = fmt.Errorf("%d rows were pruned, more %t; want %d", n, more, want)
			}
			return err
		}
	}
	pruning := make(fmt.Sprintf("pruning of %d rows", prunedRows), prune(prunedRows))
	pruning.workers, pruning.items = 1, 1
	pruning.reset = func(ctx context.Context, p *platform) error {
		return errors.Join(refillInboxes(ctx, p.db), refillInboxes(ctx, small.db))
	}
	pruning.cleanup = func(ctx context.Context, p *platform) error { // what the last reset left would be found by the other case
		var errs []error
		for _, db := range []*sql.DB{p.db, small.db} {
			_, _, err := activity.New(db).Prune(ctx, 7*24*time.Hour, 30*24*time.Hour)
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	clean := make("pruning of none", prune(0))
	clean.workers = 1
	return []benchCase{
		make("empty poll", func(ctx context.Context, p *platform, _, item int, _ *sample) error {
			i := item % askedWorkspaces
			last, err := p.poll(ctx, asked[p].workspaces[i], asked[p].cursors[i], 0)
			if err == nil && last != asked[p].cursors[i] {
				err = errRows
			}
			return err
		}),
		make("poll of 100 rows", func(ctx context.Context, p *platform, _, item int, _ *sample) error {
			w := asked[p].workspaces[item%askedWorkspaces]
			_, err := p.call(ctx, w.token, http.MethodGet, "/workspaces/"+w.id.String()+"/activity?limit=100", nil)
			return err
		}),
		make("content 1 KiB", func(ctx context.Context, p *platform, _, item int, x *sample) error {
			i := item % askedWorkspaces
			return p.content(ctx, asked[p].workspaces[i], asked[p].files[i], kib, x)
		}),
		make("list", func(ctx context.Context, p *platform, _, item int, _ *sample) error {
			w := asked[p].workspaces[item%askedWorkspaces]
			_, err := p.call(ctx, w.token, http.MethodGet, "/workspaces/"+w.id.String()+"/pending-uploads", nil)
			return err
		}),
		ack, sweep, clean, pruning,
		make("upload 1 KiB", func(ctx context.Context, p *platform, worker, _ int, _ *sample) error {
			return p.upload(ctx, asked[p].workspaces[askedWorkspaces+worker], uploaded)
		}),
	}
}

// refillInboxes gives the inboxes that are pruned their rows again. They belong to no workspace.
func refillInboxes(ctx context.Context, db *sql.DB) error {
	for _, statement := range []string{
		fmt.Sprintf(`INSERT INTO activity_counters (workspace_id, last_seq) SELECT md5('pruned ' || i)::uuid, %d FROM generate_series(1, %d) i
			ON CONFLICT DO NOTHING`, prunedRows/prunedInboxes, prunedInboxes),
		fmt.Sprintf(`INSERT INTO activity_logs (workspace_id, seq, activity_type, request_body, body_bytes, created_at)
			SELECT md5('pruned ' || i)::uuid, n, 'a2a_receive', '%s', 200, now() - interval '31 days' FROM generate_series(1, %d) i, generate_series(1, %d) n
			ON CONFLICT DO NOTHING`, rawBody, prunedInboxes, prunedRows/prunedInboxes),
		fmt.Sprintf(`UPDATE inbox_pruning SET oldest_seq = 1, oldest_at = now() - interval '31 days'
			WHERE workspace_id IN (SELECT md5('pruned ' || i)::uuid FROM generate_series(1, %d) i)`, prunedInboxes),
	} {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

var uploaded = make([]byte, kib)

// unack makes all files unacknowledged again.
func unack(ctx context.Context, p *platform) error {
	_, err := p.db.ExecContext(ctx, `UPDATE pending_uploads SET acked_at = NULL WHERE acked_at IS NOT NULL`)
	return err
}
