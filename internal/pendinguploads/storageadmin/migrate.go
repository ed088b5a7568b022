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
	moves       = 4  // files moved at once
	maxFailures = 20 // after which something is wrong with more than a file
)

// Moved is what Migrate did.
type Moved struct {
	Files, Bytes int64 // moved
	Gone         int64 // swept meanwhile, or moved by another
	Failed       int64
}

// Migrate moves every file to where bucket is told to put new ones, several at once, each by itself: it
// may be interrupted at any moment, and run again. tell is called, one call at a time, after each file,
// with its error if it has one. A file that cannot be moved stays where it is, and the error says why.
func Migrate(ctx context.Context, bucket *pendinguploads.ObjectStorage, tell func(Moved, error)) (Moved, error) {
	var mu sync.Mutex
	var done Moved
	var errs []error
	note := func(f pendinguploads.File, moved bool, err error) error {
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
		tell(done, err)
		if done.Failed >= maxFailures {
			return fmt.Errorf("upkeep: stopped after %d files that could not be moved", done.Failed)
		}
		return nil
	}
	for after := uuid.Nil; ; {
		files, err := bucket.Misplaced(ctx, after, page)
		if err != nil {
			return done, errors.Join(append(errs, err)...)
		}
		if len(files) == 0 {
			return done, errors.Join(errs...)
		}
		after = files[len(files)-1].ID
		var g errgroup.Group
		g.SetLimit(moves)
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
				moved, err := bucket.Move(ctx, f)
				if err != nil && ctx.Err() != nil {
					return nil // interrupted
				}
				return note(f, moved, err)
			})
		}
		if err := errors.Join(g.Wait(), ctx.Err()); err != nil {
			return done, errors.Join(append(errs, err)...)
		}
	}
}
