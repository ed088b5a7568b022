//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/events"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/sweeper"
)

const (
	// churnBytes is staged and deleted in each round, by churnWriters workers.
	churnBytes   = 2 << 30
	churnWriters = 4

	// churnTarget is the maximum size of the tables on disk: twice the staged bytes, plus half a GiB.
	churnTarget = 2*churnBytes + 512<<20
)

// churnSizes are the sizes of the files, in turn.
var churnSizes = []int{4 * kib, 25 * mib, 100 * kib, 5 * mib, kib, 10 * mib, 64 * kib, mib}

// withoutReclaim leaves reclaiming the space of deleted files to autovacuum.
type withoutReclaim struct{ pendinguploads.Storage }

func (withoutReclaim) Reclaim(context.Context) error { return nil }

// measureChurn fills and empties the tables repeatedly, and prints their size: with PostgreSQL's default settings, with
// the schema's, and with the sweep's reclaim in addition.
func measureChurn(ctx context.Context, o options, p *platform) error {
	w := tabwriter.NewWriter(o.output, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "GiB on disk after round\tPostgreSQL's defaults\tschema's settings\twith the sweep's VACUUM\t")
	columns := make([][]int64, 3)
	settings := make(map[string]string)
	for _, table := range []string{"pending_uploads", "pending_upload_chunks"} {
		var kept string
		if err := p.db.QueryRowContext(ctx, `SELECT concat_ws(', ', array_to_string(c.reloptions, ', '), (SELECT string_agg('toast.' || o, ', ') FROM unnest(t.reloptions) o))
			FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.relname = $1`, table).Scan(&kept); err != nil {
			return err
		}
		settings[table] = kept
	}
	for mode := range columns {
		for table, kept := range settings {
			statement := fmt.Sprintf(`ALTER TABLE %s SET (%s)`, table, kept)
			if mode == 0 {
				statement = fmt.Sprintf(`ALTER TABLE %s RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_vacuum_cost_delay,
					toast.autovacuum_vacuum_scale_factor, toast.autovacuum_vacuum_threshold, toast.autovacuum_vacuum_cost_delay)`, table)
			}
			if _, err := p.db.ExecContext(ctx, statement); err != nil {
				return err
			}
		}
		if err := empty(ctx, p); err != nil {
			return err
		}
		inbox := activity.New(p.db)
		var storage pendinguploads.Storage = pendinguploads.NewPostgres(p.db, p.writes, inbox, pendinguploads.Limits{
			MaxFileBytes: 100 * mib, MaxBatchBytes: 100 * mib, TTL: time.Hour,
		})
		if mode < 2 {
			storage = withoutReclaim{storage}
		}
		s := sweeper.New(storage, inbox, events.New(p.db, inbox), sweeper.Retention{Rows: time.Hour, Unread: time.Hour, Events: events.Retention}, slog.New(slog.DiscardHandler), nil)
		for round := range o.churn {
			fmt.Fprintf(os.Stderr, "churn %d of 3, round %d of %d\n", mode+1, round+1, o.churn)
			if err := churn(ctx, storage); err != nil {
				return err
			}
			if _, err := p.db.ExecContext(ctx, `UPDATE pending_uploads SET acked_at = now()`); err != nil {
				return err
			}
			if _, err := s.RunOnce(ctx); err != nil {
				return err
			}
			size, err := onDisk(ctx, p.db)
			if err != nil {
				return err
			}
			columns[mode] = append(columns[mode], size)
		}
	}
	var highest int64
	for round := range o.churn {
		fmt.Fprintf(w, "%d\t", round+1)
		for _, column := range columns {
			fmt.Fprintf(w, "%.2f\t", float64(column[round])/(1<<30))
		}
		fmt.Fprintln(w)
		highest = max(highest, columns[2][round])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	verdict := "reached"
	if highest > churnTarget {
		verdict = "MISSED"
	}
	_, err := fmt.Fprintf(o.output, "maximum %.2f GiB, target %.2f GiB: %s\n", float64(highest)/(1<<30), float64(churnTarget)/(1<<30), verdict)
	return err
}

// churn stages churnBytes of files.
func churn(ctx context.Context, storage pendinguploads.Storage) error {
	data := make([]byte, 25*mib)
	source := rand.NewChaCha8([32]byte{2})
	_, _ = source.Read(data) // never fails
	g, ctx := errgroup.WithContext(ctx)
	for worker := range churnWriters {
		g.Go(func() error {
			workspace := uuid.New()
			for sent, i := 0, worker; sent < churnBytes/churnWriters; i++ {
				content := data[:churnSizes[i%len(churnSizes)]]
				f := pendinguploads.NewFile{
					Name: "bench.bin", MIMEType: "application/octet-stream", Size: int64(len(content)), SHA256: sha256.Sum256(content), Content: bytes.NewReader(content),
				}
				if _, err := storage.Stage(ctx, workspace, []pendinguploads.NewFile{f}); err != nil {
					return err
				}
				sent += len(content)
			}
			return nil
		})
	}
	return g.Wait()
}

func onDisk(ctx context.Context, db *sql.DB) (size int64, err error) {
	err = db.QueryRowContext(ctx, `SELECT pg_total_relation_size('pending_uploads') + pg_total_relation_size('pending_upload_chunks')`).Scan(&size)
	return size, err
}
