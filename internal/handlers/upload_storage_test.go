package handlers_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/forward"
	"github.com/molecule-ai/platform/internal/handlers"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/server/servertest"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

var couldNotStage = map[string]any{"error": "could not stage file", "code": "stage_failed"}

// errStorage is a cause that must not reach a client.
var errStorage = errors.New("pq: disk of db-7.internal is full")

// brokenStorage fails with the configured errors. Other methods panic.
type brokenStorage struct {
	pendinguploads.Storage
	stage func([]pendinguploads.NewFile) ([]pendinguploads.File, error)
	open  func() (pendinguploads.File, io.ReadSeekCloser, error)
}

func (s brokenStorage) StageOnce(_ context.Context, _ uuid.UUID, _ string, files []pendinguploads.NewFile) ([]pendinguploads.File, bool, error) {
	staged, err := s.stage(files)
	return staged, false, err
}

func (s brokenStorage) Open(context.Context, uuid.UUID, uuid.UUID) (pendinguploads.File, io.ReadSeekCloser, error) {
	return s.open()
}

func (s brokenStorage) MarkFetched(context.Context, uuid.UUID, uuid.UUID) (bool, error) {
	return false, errStorage
}

// withStorage serves uploads and contents from storage, and returns a poll workspace there. The
// platform has no more than its URL, its logs and its folder.
func withStorage(t testing.TB, storage pendinguploads.Storage) (*servertest.Platform, servertest.Workspace) {
	t.Helper()
	p := &servertest.Platform{Logs: &servertest.Logs{}, DB: pgtest.Open(t, pgtest.New(t))}
	p.Config.SpoolDir = t.TempDir()
	log := slog.New(slog.NewJSONHandler(p.Logs, nil))
	tokens := wsauth.New(p.DB, servertest.AdminToken, log)
	store := workspaces.New(p.DB, tokens, func(string) error { return nil })
	limits := handlers.UploadLimits{MaxFileBytes: 8 * mib, MaxRequestBytes: 8 * mib, MaxFiles: 4, ExpiresAfter: time.Hour}
	files := handlers.NewChatFilesHandler(store, forward.New(forward.Options{}), limits, fairshare.New(1))
	files.WithPendingUploads(storage, p.Config.SpoolDir)
	pending := handlers.NewPendingUploadsHandler(store, storage, fairshare.New(1))

	e := gin.New()
	e.Use(handlers.Log(log), handlers.Recover(), tokens.RequireWorkspace(handlers.Render))
	e.POST("/workspaces/:id/chat/uploads", handlers.Wrap(files.Upload))
	e.GET("/workspaces/:id/pending-uploads/:file_id/content", handlers.Wrap(pending.Content))
	server := httptest.NewServer(e)
	t.Cleanup(server.Close)
	p.URL = server.URL

	w, token, err := store.Create(t.Context(), t.Name(), workspaces.Poll, "")
	if err != nil {
		t.Fatal(err)
	}
	return p, servertest.Workspace{ID: w.ID.String(), Token: token}
}

func TestUpload_StorageFailureHidesItsCause(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{errStorage, pendinguploads.ErrInvalidFile, pendinguploads.ErrNotFound, context.DeadlineExceeded} {
		p, w := withStorage(t, brokenStorage{stage: func([]pendinguploads.NewFile) ([]pendinguploads.File, error) { return nil, cause }})
		answered(t, post(t, p, w, file("a", "", "a")), http.StatusInternalServerError, couldNotStage)
		lines := p.Logs.Lines(t, "failed")
		if len(lines) != 1 || !strings.Contains(lines[0]["error"].(string), cause.Error()) {
			t.Errorf("log has %v, want the cause %q", lines, cause)
		}
	}
}

// A panic is answered like any other failure and releases its slot, of which there is one.
func TestUpload_StoragePanicIsAnInternalError(t *testing.T) {
	t.Parallel()
	p, w := withStorage(t, brokenStorage{stage: func([]pendinguploads.NewFile) ([]pendinguploads.File, error) { panic(errStorage) }})
	for range 2 {
		answered(t, post(t, p, w, file("a", "", "a")), http.StatusInternalServerError, map[string]any{
			"error": "internal error; it has been logged", "code": "internal",
		})
	}
	emptyFolder(t, p.Config.SpoolDir)
}

// The storage must not get a file before the last byte of the request has been read. Planted: each file staged as
// soon as it is read.
func TestUpload_NothingIsStagedBeforeTheLastPartIsRead(t *testing.T) {
	t.Parallel()
	p, w := withStorage(t, brokenStorage{stage: func(files []pendinguploads.NewFile) ([]pendinguploads.File, error) {
		t.Errorf("storage was given %d files of a request that is refused", len(files))
		return nil, errStorage
	}})
	good := file("good.txt", "", "good")
	for _, bad := range []part{file("large", "", pattern(8*mib+1)), {"Content-Type: text/plain", "no disposition"}} {
		if r := post(t, p, w, good, good, bad); r.Status != http.StatusRequestEntityTooLarge && r.Status != http.StatusBadRequest {
			t.Errorf("answered %d %s", r.Status, r.Body)
		}
	}
}

// The last statement of the transaction fails, in the real storage.
func TestUpload_InboxFailureLeavesNoFile(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	exec(t, p, "ALTER TABLE activity_logs ADD CONSTRAINT full_disk CHECK (summary NOT LIKE '%b.txt') NOT VALID")
	r := post(t, p, w, file("a.txt", "", "a"), file("b.txt", "", pattern(2*mib)), file("c.txt", "", "c"))
	answered(t, r, http.StatusInternalServerError, couldNotStage)
	nothingStaged(t, p)

	exec(t, p, "ALTER TABLE activity_logs DROP CONSTRAINT full_disk")
	wantAnnounced(t, p, w, accepted(t, post(t, p, w, file("a.txt", "", "a"), file("b.txt", "", "b"))))
}

func TestUpload_MissingSpoolFolderIsAnInternalError(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	if err := os.Remove(p.Config.SpoolDir); err != nil {
		t.Fatal(err)
	}
	answered(t, post(t, p, w, file("a.txt", "", pattern(3*mib)), file("b.txt", "", "b")), http.StatusInternalServerError, couldNotStage)
	if lines := p.Logs.Lines(t, "failed"); len(lines) != 1 {
		t.Errorf("log has %v, want one failure", lines)
	}
	stage(t, p, w, "what fits in memory needs no folder")
	if err := os.Mkdir(p.Config.SpoolDir, 0o700); err != nil {
		t.Fatal(err)
	}
	stage(t, p, w, pattern(3*mib))
}
