package main

import (
	"database/sql"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/term"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/pendinguploads/storageadmin"
)

type storageCmd struct {
	Reconcile storageReconcileCmd `cmd:"" help:"Compare the object stores with the database and report orphaned objects and files without bytes. Exit code 1 if a file has lost its bytes."`
	Migrate   storageMigrateCmd   `cmd:"" help:"Move the bytes of all files to the store of STORAGE_URL. It can be interrupted and run again."`
}

type storageReconcileCmd struct {
	Fix bool `help:"Delete the orphans. Without it, only reports."`
}

// Run compares all stores that were ever configured.
func (r storageReconcileCmd) Run(env *environment, settings *config.Settings) error {
	return withDatabase(env, settings, func(db *sql.DB) error {
		if err := requireCurrentSchema(env.ctx, db); err != nil {
			return err
		}
		tell := func(format string, args ...any) { fmt.Fprintf(env.stdout, format+"\n", args...) }
		f, err := storageadmin.Reconcile(env.ctx, db, r.Fix, tell)
		verb := "not deleted; run with --fix to delete them"
		if r.Fix {
			verb = "deleted"
		}
		tell("objects: %d, files with objects: %d", f.Objects, f.Files)
		tell("orphans: objects unknown to the database %d (%s), objects without a file %d, partial files %d, unfinished uploads %d: %s",
			f.Orphans, humanize.IBytes(uint64(f.OrphanBytes)), f.Unowned, f.Partial, f.Unfinished, verb)
		tell("ignored: objects that the platform did not name %d", f.Foreign)
		tell("damaged files: bytes missing %d, wrong size %d", f.Missing, f.WrongSize)
		return err
	})
}

type storageMigrateCmd struct {
	DryRun bool `help:"Only report how much there is to move."`
}

// Run moves what is not where the configuration says.
func (m storageMigrateCmd) Run(env *environment, settings *config.Settings) error {
	c, err := settings.LoadStorage()
	if err != nil {
		return fmt.Errorf("%w:\n%w", errConfig, err)
	}
	where := c.StorageURL
	if where == "" {
		where = "PostgreSQL"
	}
	return withDatabase(env, settings, func(db *sql.DB) error {
		storage, err := openObjectStorage(env.ctx, db, c)
		if err != nil {
			return err
		}
		defer storage.Close() // everything is committed
		files, bytes, err := storage.CountMisplaced(env.ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(env.stdout, "to be moved to %s: %d files, %s\n", where, files, humanize.IBytes(uint64(bytes)))
		if m.DryRun || files == 0 {
			return nil
		}
		p := newProgress(env.stdout, files, bytes)
		moved, err := storageadmin.Migrate(env.ctx, storage, p.tell)
		p.end(moved)
		fmt.Fprintf(env.stdout, "moved %d files, %s, each verified by SHA-256; deleted meanwhile %d, failed %d\n",
			moved.Files, humanize.IBytes(uint64(moved.Bytes)), moved.Gone, moved.Failed)
		if env.ctx.Err() != nil {
			fmt.Fprintln(env.stdout, "interrupted; run the command again to continue")
		}
		return err
	})
}

const (
	barWidth     = 30
	barInterval  = 100 * time.Millisecond
	lineInterval = 5 * time.Second
)

// progress prints how far a migration is: as a bar on a terminal, otherwise as a line every lineInterval.
type progress struct {
	w            io.Writer
	terminal     bool
	files, bytes int64
	start, last  time.Time
}

func newProgress(w io.Writer, files, bytes int64) *progress {
	f, isFile := w.(*os.File)
	now := time.Now()
	return &progress{w: w, terminal: isFile && term.IsTerminal(int(f.Fd())), files: files, bytes: bytes, start: now, last: now}
}

func (p *progress) tell(m storageadmin.Moved, err error) {
	if err != nil {
		if p.terminal {
			fmt.Fprint(p.w, "\r\x1b[K")
		}
		fmt.Fprintln(p.w, err)
	}
	interval := lineInterval
	if p.terminal {
		interval = barInterval
	}
	if time.Since(p.last) >= interval {
		p.show(m)
	}
}

func (p *progress) show(m storageadmin.Moved) {
	p.last = time.Now()
	done := min(float64(m.Files+m.Gone+m.Failed)/float64(p.files), 1)
	text := fmt.Sprintf("%3.0f %%  %d of %d files, %s of %s, %s/s", 100*done, m.Files, p.files, humanize.IBytes(uint64(m.Bytes)),
		humanize.IBytes(uint64(p.bytes)), humanize.IBytes(uint64(float64(m.Bytes)/max(time.Since(p.start).Seconds(), 0.001))))
	if !p.terminal {
		fmt.Fprintln(p.w, text)
		return
	}
	n := int(done * barWidth)
	fmt.Fprintf(p.w, "\r\x1b[K[%s%s] %s", strings.Repeat("=", n), strings.Repeat(" ", barWidth-n), text)
}

func (p *progress) end(m storageadmin.Moved) {
	if p.terminal {
		p.show(m)
		fmt.Fprintln(p.w)
	}
}
