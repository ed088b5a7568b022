package main

import (
	"errors"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

var stoppingLine = regexp.MustCompile(`"msg":"stopping"`)

func TestStop_LetsAnUploadInFlightFinish(t *testing.T) {
	t.Parallel()
	dir := newFolder(t)
	p := serve(t, dir)
	w := p.create(t, adminToken(t, dir), "poll", "")
	postgres := p.postgres(t)

	u := p.beginUpload(t, w, "slow.bin")
	p.signal(t, syscall.SIGTERM)
	p.await(t, p.stderr, stoppingLine)
	eventually(t, testTimeout, "new connections are refused", func() bool { return !p.accepts() })

	// A second of a slow connection, still above the minimum rate.
	piece := strings.Repeat("0123456789abcdef", 256)
	pace := time.NewTicker(50 * time.Millisecond)
	defer pace.Stop()
	for range 20 {
		<-pace.C
		u.send(t, piece)
	}
	f := u.finish(t)[0]
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if !gone(postgres) {
		t.Error("PostgreSQL outlived the platform")
	}
	if log := p.stderr.String(); !strings.Contains(log, `"msg":"stopped"`) || strings.Contains(log, `"level":"ERROR"`) {
		t.Errorf("it did not stop in order:\n%s", log)
	}

	p = serve(t, dir)
	if r := p.fetch(t, w, f.id(), nil); string(r.Body) != firstPiece+strings.Repeat(piece, 20) {
		t.Errorf("fetch after the stop: %d, %d bytes that are not those sent", r.Status, len(r.Body))
	}
}

func TestStop_SecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	dir := newFolder(t)
	p := serve(t, dir)
	w := p.create(t, adminToken(t, dir), "poll", "")
	postgres := p.postgres(t)

	u := p.beginUpload(t, w, "never.bin")
	defer u.abandon()
	p.signal(t, syscall.SIGINT)
	p.await(t, p.stderr, stoppingLine)
	began := time.Now()
	// Repeatedly: the second signal may arrive before the first was handled.
	eventually(t, testTimeout, "the platform has ended", func() bool {
		_ = p.cmd.Process.Signal(syscall.SIGINT)
		select {
		case <-p.exited:
			return true
		default:
			return false
		}
	})
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s; the upload in flight was waited for", took)
	}
	if code := p.exit(t); code == 0 {
		t.Error("exit code 0, though an upload was cut")
	}
	eventually(t, 15*time.Second, "PostgreSQL is gone", func() bool { return gone(postgres) })
}

// accepts reports whether the platform accepts new connections.
func (p *process) accepts() bool {
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(p.url, "http://"), time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// firstPiece is what a slow upload sends at its start.
const firstPiece = "begun\n"

// slowUpload is an upload in flight.
type slowUpload struct {
	body   *io.PipeWriter
	form   *multipart.Writer
	file   io.Writer
	answer chan uploadAnswer
}

type uploadAnswer struct {
	status int
	files  []stagedFile
	err    error
}

// beginUpload returns when the platform reads the upload's body: the client sends Expect: 100-continue, and the
// platform answers when it first reads the body.
func (p *process) beginUpload(t *testing.T, w servertest.Workspace, name string) *slowUpload {
	t.Helper()
	r, body := io.Pipe()
	u := &slowUpload{body: body, form: multipart.NewWriter(body), answer: make(chan uploadAnswer, 1)}
	transport := &http.Transport{ExpectContinueTimeout: time.Hour}
	t.Cleanup(transport.CloseIdleConnections)
	go func() {
		var a uploadAnswer
		a.status, a.files, a.err = p.post(&http.Client{Transport: expecting{transport}}, w, u.form.FormDataContentType(), r)
		r.CloseWithError(errors.New("the upload has been answered")) // unblocks a sender
		u.answer <- a
	}()
	u.file = part(u.form, name)
	u.send(t, firstPiece)
	return u
}

// expecting adds Expect: 100-continue to every request.
type expecting struct{ http.RoundTripper }

func (e expecting) RoundTrip(request *http.Request) (*http.Response, error) {
	request = request.Clone(request.Context())
	request.Header.Set("Expect", "100-continue")
	return e.RoundTripper.RoundTrip(request)
}

func (u *slowUpload) send(t *testing.T, piece string) {
	t.Helper()
	if _, err := io.WriteString(u.file, piece); err != nil {
		t.Fatalf("send: %v", err)
	}
}

// finish sends the rest and returns what was staged.
func (u *slowUpload) finish(t *testing.T) []stagedFile {
	t.Helper()
	if err := u.form.Close(); err != nil {
		t.Fatalf("send: %v", err)
	}
	u.body.Close()
	a := <-u.answer
	if a.err != nil || a.status != http.StatusOK || len(a.files) != 1 {
		t.Fatalf("upload in flight at the stop: %d, %d files, %v", a.status, len(a.files), a.err)
	}
	return a.files
}

func (u *slowUpload) abandon() {
	u.body.CloseWithError(io.ErrUnexpectedEOF)
	<-u.answer
}
