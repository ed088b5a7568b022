package storageadmin

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

const (
	parallelMoves = 4 // files moved at the same time

	// maxFailures stops a migration: the problem is then more than a single file.
	maxFailures = 20
)

// Moved counts what Migrate did.
type Moved struct {
	Files, Bytes int64 // moved
	Gone         int64 // swept, or moved by another process, meanwhile
	Failed       int64 // not moved; they stay where they were
}

// Migrate moves every file to where storage writes new ones, several at the same time. Each file is moved
// by itself, so Migrate may be interrupted at any moment and run again. It calls report after each file,
// one call at a time, with the error if the file could not be moved; that file stays where it is, and
// Migrate goes on with the others and returns the errors at the end. It stops after 20 such files.
func Migrate(ctx context.Context, storage *pendinguploads.ObjectStorage, report func(Moved, error)) (Moved, error) {
	var mu sync.Mutex
	var done Moved
	var errs []error
	record := func(f pendinguploads.File, moved bool, err error) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			done.Failed++
			errs = append(errs, err)
		case moved:
			done.Files++
			done.Bytes += f.Size
		default:
			done.Gone++
		}
		report(done, err)
		if done.Failed >= maxFailures {
			return fmt.Errorf("storageadmin: stopped after %d files that could not be moved", done.Failed)
		}
		return nil
	}
	for after := uuid.Nil; ; {
		files, err := storage.Misplaced(ctx, after, pageSize)
		if err != nil {
			return done, errors.Join(append(errs, err)...)
		}
		if len(files) == 0 {
			return done, errors.Join(errs...)
		}
		after = files[len(files)-1].ID
		var g errgroup.Group
		g.SetLimit(parallelMoves)
		for _, f := range files {
			if ctx.Err() != nil {
				break
			}
			g.Go(func() error {
				mu.Lock()
				stop := done.Failed >= maxFailures
				mu.Unlock()
				if stop {
					return nil
				}
				moved, err := storage.Move(ctx, f)
				if err != nil && ctx.Err() != nil {
					return nil // interrupted: not a failure of this file
				}
				return record(f, moved, err)
			})
		}
		if err := errors.Join(g.Wait(), ctx.Err()); err != nil {
			return done, errors.Join(append(errs, err)...)
		}
	}
}
