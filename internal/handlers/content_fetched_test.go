package handlers_test

import (
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// fetchedAt returns fetched_at of a file.
func fetchedAt(t testing.TB, p *servertest.Platform, f stagedFile) sql.NullTime {
	t.Helper()
	var at sql.NullTime
	if err := p.DB.QueryRow("SELECT fetched_at FROM pending_uploads WHERE file_id = $1", f.ID()).Scan(&at); err != nil {
		t.Fatal(err)
	}
	return at
}

// Planted: fetched_at set on HEAD; on a range; on every read.
func TestContent_OnlyTheFirstFullReadMarksFetched(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	for _, content := range []string{"", "0123456789"} { // HEAD of an empty file sends as many bytes as GET
		f := stage(t, p, w, content)
		path, tag := pendingPath(w, f, "/content"), `"`+f.SHA256+`"`
		partial := []servertest.Request{
			{Method: http.MethodHead, Header: http.Header{}},
			{Header: http.Header{"If-None-Match": {tag}}},
			{Header: http.Header{"If-Match": {`"x"`}}},
		}
		if content != "" {
			partial = append(
				partial, servertest.Request{Header: http.Header{"Range": {"bytes=0-3"}}},
				servertest.Request{Header: http.Header{"Range": {"bytes=-1"}}}, servertest.Request{Header: http.Header{"Range": {"bytes=10-"}}},
			)
		}
		for i, r := range partial {
			r.Path, r.Token = path, w.Token
			do(t, p, fmt.Sprintf("partial-%d-%d", len(content), i), r)
			if at := fetchedAt(t, p, f); at.Valid {
				t.Errorf("%s %v of %d bytes was marked fetched", r.Method, r.Header, len(content))
			}
		}
		whole := http.Header{"Range": {"bytes=0-"}} // some clients send this for every file
		do(t, p, fmt.Sprintf("full-%d", len(content)), servertest.Request{Path: path, Token: w.Token, Header: whole})
		first := fetchedAt(t, p, f)
		if !first.Valid {
			t.Fatalf("the first full read of %d bytes was not marked fetched", len(content))
		}
		do(t, p, fmt.Sprintf("again-%d", len(content)), servertest.Request{Path: path, Token: w.Token})
		if again := fetchedAt(t, p, f); !again.Time.Equal(first.Time) {
			t.Errorf("the second read changed fetched_at from %v to %v", first.Time, again.Time)
		}
	}
	if lines := p.Logs.Lines(t, "fetched"); len(lines) != 2 {
		t.Errorf("%d lines say fetched, want one for each file", len(lines))
	}
}

// large is more than the buffers of a connection hold.
const large = 16 * mib

// halfRead requests a large file and reads the header of the answer, so that the platform is in the middle of
// sending it.
func halfRead(t testing.TB, p *servertest.Platform, w servertest.Workspace, f stagedFile, id string) (*wire, *http.Response) {
	t.Helper()
	c := dial(t, p.URL)
	if err := c.Conn.(*net.TCPConn).SetReadBuffer(mib / 4); err != nil {
		t.Fatal(err)
	}
	c.send(t, "GET "+pendingPath(w, f, "/content")+" HTTP/1.1\r\nHost: platform\r\nX-Request-Id: "+id+
		"\r\nAuthorization: Bearer "+w.Token+"\r\n\r\n")
	answer := c.answer(t)
	if answer.StatusCode != http.StatusOK || answer.ContentLength != f.Size {
		t.Fatalf("%s, %d bytes announced", answer.Status, answer.ContentLength)
	}
	return c, answer
}

// Planted: fetched_at set whatever was written.
func TestContent_AbortedDownloadIsNotFetched(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	f := stage(t, p, w, pattern(large))
	c, _ := halfRead(t, p, w, f, "hung-up")
	_ = c.Close()
	finished(t, p, "hung-up")
	if at := fetchedAt(t, p, f); at.Valid {
		t.Error("a partial read was marked fetched")
	}
}

// Planted: the error ignored, so that the connection is kept.
func TestContent_FileSweptDuringDownloadTruncatesTheResponse(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	f := stage(t, p, w, pattern(large))
	c, answer := halfRead(t, p, w, f, "swept")
	exec(t, p, "DELETE FROM pending_uploads WHERE file_id = $1", f.ID())
	n, err := io.Copy(io.Discard, answer.Body)
	if err != io.ErrUnexpectedEOF || n >= large {
		t.Errorf("read %d of %d bytes with %v, want a truncated body", n, large, err)
	}
	if n, err := c.in.ReadByte(); err == nil {
		t.Errorf("the connection was kept, and has %q", n)
	}
	finished(t, p, "swept")
	if line := logLine(t, p, "fetched", "swept"); line != nil {
		t.Errorf("marked fetched: %v", line)
	}
}

// Planted: admission without a limit; one limit for uploads and downloads.
func TestContent_SaturatedIs503WithRetryAfter(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.MaxDownloads = "1" })
	w := p.Create(t, "poll", "")
	f := stage(t, p, w, pattern(large))
	c, _ := halfRead(t, p, w, f, "slow")
	r := fetch(t, p, w, f)
	answered(t, r, http.StatusServiceUnavailable, map[string]any{"error": "the platform is busy; retry shortly", "code": "saturated"})
	if got := r.Header.Get("Retry-After"); got != "5" {
		t.Errorf("Retry-After is %q, want 5", got)
	}
	small := stage(t, p, w, "uploads have room of their own")
	ack(t, p, w, small)
	_ = c.Close()
	finished(t, p, "slow")
	if r := fetch(t, p, w, small); r.Status != http.StatusOK {
		t.Errorf("after the slow one: %d %s", r.Status, r.Body)
	}
}

// A failure to set fetched_at must not fail the download.
func TestContent_IsDeliveredWhenMarkingFetchedFails(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	f := stage(t, p, w, "delivered")
	exec(t, p, "ALTER TABLE pending_uploads ADD CONSTRAINT full_disk CHECK (fetched_at IS NULL)")
	r := do(t, p, "not-noted", servertest.Request{Path: pendingPath(w, f, "/content"), Token: w.Token})
	if r.Status != http.StatusOK || string(r.Body) != "delivered" {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	if logLine(t, p, "marking the file fetched failed", "not-noted") == nil {
		t.Error("nothing in the log")
	}
}
