package handlers

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/notify"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/uploadname"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// markTimeout bounds MarkFetched, which runs after the bytes were sent.
const markTimeout = 5 * time.Second

// sendBytes is the size of a write to the connection.
const sendBytes = 128 << 10

// PendingUploadsHandler lets a workspace list, fetch and acknowledge its files.
type PendingUploadsHandler struct {
	workspaces *workspaces.Store
	storage    pendinguploads.Storage
	downloads  *fairshare.Budget
	signer     URLSigner // nil: none
}

// NewPendingUploadsHandler returns the handler. downloads bounds the files being read.
func NewPendingUploadsHandler(store *workspaces.Store, storage pendinguploads.Storage, downloads *fairshare.Budget) *PendingUploadsHandler {
	return &PendingUploadsHandler{workspaces: store, storage: storage, downloads: downloads}
}

// Content sends the bytes of a file, or a range of them.
func (h *PendingUploadsHandler) Content(c *gin.Context) error {
	id, err := fileID(c)
	if err != nil {
		return err
	}
	if done, err := h.redirect(c, id); done || err != nil {
		return err
	}
	release, err := admit(c, h.downloads)
	if err != nil {
		return err
	}
	defer release()
	start := time.Now()
	file, content, err := h.storage.Open(c.Request.Context(), wsauth.WorkspaceOf(c), id)
	if err != nil {
		return err
	}
	defer content.Close()
	setContentHeaders(c, file)
	source := &errorRecorder{ReadSeeker: content}
	target := &rangeWriter{ResponseWriter: c.Writer}
	// Without name and time: the type is set already, and the ETag is stronger than a date.
	http.ServeContent(target, c.Request, "", time.Time{}, source)
	meter(c).Sent(target.written)
	if target.refused != "" {
		meter(c).Refused(c.FullPath(), target.refused)
	}
	if 0 < target.written && target.written < file.Size {
		audit(c, "read in part", "file_id", file.ID, "filename", file.Name, "size", file.Size, "bytes", target.written)
	}
	if source.err != nil {
		// Either the client detects a body shorter than announced, or nothing was sent yet and the answer
		// is the error, without the file's headers.
		if !c.Writer.Written() {
			for _, ofFile := range fileHeaders {
				c.Writer.Header().Del(ofFile)
			}
		}
		return source.err
	}
	sent := c.Writer.Status() == http.StatusOK || c.Writer.Status() == http.StatusPartialContent
	if sent && c.Request.Method == http.MethodGet && target.written == file.Size && target.err == nil {
		c.Writer.Flush()
		h.markFetched(c, file, time.Since(start))
	}
	return nil
}

// markFetched is best effort: the client has the bytes, and only its ack decides about the file.
func (h *PendingUploadsHandler) markFetched(c *gin.Context, file pendinguploads.File, took time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Request.Context()), markTimeout)
	defer cancel()
	var first bool
	err := connected(ctx, c, file.Workspace, func() (err error) {
		first, err = h.storage.MarkFetched(ctx, file.Workspace, file.ID)
		return err
	})
	switch {
	case err != nil:
		logger(c).WarnContext(c, "marking the file fetched failed", append(auditFields(c), "file_id", file.ID, "error", err)...)
	case !first:
		audit(c, "read again", "file_id", file.ID, "filename", file.Name, "size", file.Size)
	default:
		publish(c, file.Workspace, notify.Receipts)
		meter(c).Fetched(file.Size)
		audit(c, "fetched", "file_id", file.ID, "filename", file.Name, "size", file.Size, "duration", took)
	}
}

// fileHeaders are the headers that only an answer with a file may have: an error must not differ between a
// deleted file and one that never existed.
var fileHeaders = []string{
	"Accept-Ranges", "Cache-Control", "Content-Disposition", "Content-Length", "Content-Range", "Content-Security-Policy",
	"Content-Type", "Cross-Origin-Resource-Policy", "Etag", "Repr-Digest", "X-Content-Type-Options",
}

// setContentHeaders sets the headers that keep a browser from running an untrusted file, and that let a
// client verify and resume a download.
func setContentHeaders(c *gin.Context, f pendinguploads.File) {
	c.Header("Content-Type", f.MIMEType)
	c.Header("Content-Disposition", uploadname.ContentDisposition(f.Name))
	c.Header("ETag", `"`+hex.EncodeToString(f.SHA256[:])+`"`)
	c.Header("Repr-Digest", reprDigest(f))
	c.Header("Cache-Control", "private, no-store")
	c.Header("Cross-Origin-Resource-Policy", "same-origin")
	setSandboxHeaders(c)
	if header := c.GetHeader("Range"); header != "" {
		c.Request.Header.Set("Range", normalRange(header, f.Size)) // http.ServeContent takes "" for none
	}
}

// setSandboxHeaders keeps a browser from running untrusted content.
func setSandboxHeaders(c *gin.Context) {
	c.Header("X-Content-Type-Options", "nosniff")
	c.Header("Content-Security-Policy", "sandbox; default-src 'none'; frame-ancestors 'none'")
}

// errorRecorder keeps the read error that http.ServeContent does not return.
type errorRecorder struct {
	io.ReadSeeker
	err error
}

func (r *errorRecorder) Read(p []byte) (int, error) {
	n, err := r.ReadSeeker.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// rangeWriter counts the bytes sent, and replaces the error answers of http.ServeContent (plain text for an
// unsatisfiable range, no body for a failed If-Match) with JSON errors.
type rangeWriter struct {
	gin.ResponseWriter
	written int64
	err     error
	refused string // the code of that error
}

func (w *rangeWriter) WriteHeader(status int) {
	var sentence string
	switch status {
	case http.StatusRequestedRangeNotSatisfiable:
		w.refused, sentence = "range_not_satisfiable", "range is outside the file"
	case http.StatusPreconditionFailed:
		w.refused, sentence = "precondition_failed", "If-Match does not match the file's ETag"
	default:
		w.ResponseWriter.WriteHeader(status)
		return
	}
	for _, ofFile := range []string{"Content-Disposition", "Content-Length", "Repr-Digest"} {
		w.Header().Del(ofFile)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "private, no-store") // http.ServeContent deletes it for errors
	w.ResponseWriter.WriteHeader(status)
	_, w.err = w.ResponseWriter.WriteString(`{"error":"` + sentence + `","code":"` + w.refused + `"}`)
}

// ReadFrom implements io.ReaderFrom, which http.ServeContent's copy uses. Without it the copy would write
// 32 KiB at a time, with as many system calls.
func (w *rangeWriter) ReadFrom(r io.Reader) (int64, error) {
	buffer := sendBuffers.Get().(*[]byte)
	defer sendBuffers.Put(buffer)
	return io.CopyBuffer(onlyWriter{w}, r, *buffer)
}

// onlyWriter hides the other methods of a writer, so that io.CopyBuffer does not call ReadFrom again.
type onlyWriter struct{ io.Writer }

var sendBuffers = sync.Pool{New: func() any { b := make([]byte, sendBytes); return &b }}

func (w *rangeWriter) Write(p []byte) (int, error) {
	if w.refused != "" {
		return len(p), nil
	}
	n, err := w.ResponseWriter.Write(p)
	w.written += int64(n)
	w.err = err
	return n, err
}

// Ack marks a file delivered.
func (h *PendingUploadsHandler) Ack(c *gin.Context) error {
	id, err := fileID(c)
	if err != nil {
		return err
	}
	var f pendinguploads.File
	var first bool
	ctx := c.Request.Context()
	err = connected(ctx, c, wsauth.WorkspaceOf(c), func() (err error) {
		f, first, err = h.storage.Ack(ctx, wsauth.WorkspaceOf(c), id)
		return err
	})
	if err != nil {
		return err
	}
	if first {
		publish(c, f.Workspace, notify.Receipts)
		waited := f.AckedAt.Sub(f.CreatedAt)
		meter(c).Acked(f.Size, waited)
		audit(c, "acked", "file_id", f.ID, "filename", f.Name, "size", f.Size, "duration", waited)
	}
	c.PureJSON(http.StatusOK, gin.H{"acked": true})
	return nil
}

// List lists staged files, oldest first.
func (h *PendingUploadsHandler) List(c *gin.Context) error {
	p := params{get: c.Query}
	q := pendinguploads.ListQuery{
		After: p.uuid("after"),
		Limit: p.positive("limit", "a whole number from 1; more than 500 is 500"),
	}
	switch p.oneOf("state", "unacked", "acked", "all") {
	case "acked":
		q.Filter = pendinguploads.OnlyAcked
	case "all":
		q.Filter = pendinguploads.All
	}
	if p.err != nil {
		return p.err
	}
	if err := requireExistingWorkspace(c, h.workspaces); err != nil {
		return err
	}
	var files []pendinguploads.File
	ctx := c.Request.Context()
	err := connected(ctx, c, wsauth.WorkspaceOf(c), func() (err error) {
		files, err = h.storage.List(ctx, wsauth.WorkspaceOf(c), q)
		return err
	})
	if err != nil {
		return err
	}
	views := make([]fileView, len(files))
	for i, f := range files {
		views[i] = viewFile(f)
	}
	c.PureJSON(http.StatusOK, views)
	return nil
}

// Show returns one file; a sender polls it until the file is acked.
func (h *PendingUploadsHandler) Show(c *gin.Context) error {
	id, err := fileID(c)
	if err != nil {
		return err
	}
	f, err := h.storage.Get(c.Request.Context(), wsauth.WorkspaceOf(c), id)
	if err != nil {
		return err
	}
	c.PureJSON(http.StatusOK, viewFile(f))
	return nil
}

type fileView struct {
	FileID    uuid.UUID            `json:"file_id"`
	URI       string               `json:"uri"`
	Name      string               `json:"name"`
	MIMEType  string               `json:"mimeType"`
	Size      int64                `json:"size"`
	SHA256    string               `json:"sha256"`
	State     pendinguploads.State `json:"state"`
	CreatedAt time.Time            `json:"created_at"`
	FetchedAt *time.Time           `json:"fetched_at"`
	AckedAt   *time.Time           `json:"acked_at"`
	ExpiresAt time.Time            `json:"expires_at"`
}

func viewFile(f pendinguploads.File) fileView {
	return fileView{
		FileID: f.ID, URI: f.URI(), Name: f.Name, MIMEType: f.MIMEType, Size: f.Size, SHA256: hex.EncodeToString(f.SHA256[:]),
		State: f.State(), CreatedAt: f.CreatedAt.UTC(), FetchedAt: utc(f.FetchedAt), AckedAt: utc(f.AckedAt), ExpiresAt: f.ExpiresAt.UTC(),
	}
}
