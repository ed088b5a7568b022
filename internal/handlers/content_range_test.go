package handlers_test

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

// The ranges are around the boundaries of a file's chunks. Planted: a chunk read from its start whatever the
// offset.
func TestContent_SingleRanges(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	content := pattern(3*mib + 1000)
	size := len(content)
	f := stage(t, p, w, content)
	for _, r := range []struct {
		header      string
		first, last int
	}{
		{"bytes=0-0", 0, 0},
		{"bytes=0-", 0, size - 1},
		{"bytes=-1", size - 1, size - 1},
		{"bytes=-1500", size - 1500, size - 1},
		{fmt.Sprintf("bytes=-%d", size+5), 0, size - 1},
		{fmt.Sprintf("bytes=%d-%d", size-1, size-1), size - 1, size - 1},
		{fmt.Sprintf("bytes=%d-", size-1), size - 1, size - 1},
		{fmt.Sprintf("bytes=%d-%d", size-2, size+100), size - 2, size - 1},
		{fmt.Sprintf("bytes=%d-%d", mib-1, mib-1), mib - 1, mib - 1},
		{fmt.Sprintf("bytes=%d-%d", mib, mib), mib, mib},
		{fmt.Sprintf("bytes=%d-%d", mib-1, mib), mib - 1, mib},
		{fmt.Sprintf("bytes=%d-%d", mib-3, 2*mib+3), mib - 3, 2*mib + 3},
		{fmt.Sprintf("bytes=%d-%d", 2*mib, 3*mib-1), 2 * mib, 3*mib - 1},
		{fmt.Sprintf("bytes=%d-", 3*mib), 3 * mib, size - 1},
	} {
		got := fetch(t, p, w, f, "Range", r.header)
		want := content[r.first : r.last+1]
		if got.Status != http.StatusPartialContent || string(got.Body) != want {
			t.Errorf("%s: %d with %d bytes, want 206 with these %d", r.header, got.Status, len(got.Body), len(want))
		}
		for name, value := range map[string]string{
			"Content-Range": fmt.Sprintf("bytes %d-%d/%d", r.first, r.last, size), "Content-Length": strconv.Itoa(len(want)),
			"Content-Type": "text/plain",
		} {
			if h := got.Header.Get(name); h != value {
				t.Errorf("%s: %s is %q, want %q", r.header, name, h, value)
			}
		}
		wantFileHeader(t, got.Header, f, content)
	}
}

// Planted: http.ServeContent's own reading of each of these.
func TestContent_RangeIsReadAsClientsWriteIt(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	f := stage(t, p, w, "0123456789")
	for header, want := range map[string]string{
		"BYTES=2-4": "234", "Bytes = 2 - 4": "234", "bytes=8-99999999999999999999": "89", "bytes=-99999999999999999999": "0123456789",
		"bytes=-3": "789", "bytes=9-": "9",
	} {
		r := fetch(t, p, w, f, "Range", header)
		if r.Status != http.StatusPartialContent || string(r.Body) != want {
			t.Errorf("%s: %d %q, want 206 %q", header, r.Status, r.Body, want)
		}
	}
}

// Everything but a single range is answered with the whole file. Planted: several ranges answered as
// multipart/byteranges.
func TestContent_OtherRangesGetTheWholeFile(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	const content = "0123456789"
	f := stage(t, p, w, content)
	for _, header := range []string{"bytes=0-0,2-3", "bytes=0-0, -1", "bytes=5-2,0-1", "bytes=,0-1"} {
		r := fetch(t, p, w, f, "Range", header)
		if r.Status != http.StatusOK || string(r.Body) != content || r.Header.Get("Content-Range") != "" {
			t.Errorf("%s: %d %q, Content-Range %q", header, r.Status, r.Body, r.Header.Get("Content-Range"))
		}
		wantFileHeader(t, r.Header, f, content)
	}
	for _, header := range []string{"nonsense", "lines=0-1", "seconds=1-", "=0-1", "bytes"} { // RFC 9110, section 14.2: an unknown unit is ignored
		if r := fetch(t, p, w, f, "Range", header); r.Status != http.StatusOK || string(r.Body) != content {
			t.Errorf("%s: %d %q", header, r.Status, r.Body)
		}
	}
	empty := stage(t, p, w, "")
	for _, header := range []string{"bytes=0-0", "bytes=-5", "bytes=-0", "bytes=0-", "bytes=9-"} {
		if r := fetch(t, p, w, empty, "Range", header); r.Status != http.StatusOK || len(r.Body) != 0 {
			t.Errorf("%s of an empty file: %d %q", header, r.Status, r.Body)
		}
	}
}

func TestContent_RangeOutsideTheFileIsAJSONError(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	f := stage(t, p, w, "0123456789")
	for header, contentRange := range map[string]string{
		"bytes=10-": "bytes */10", "bytes=10-20": "bytes */10", "bytes=99999999999-": "bytes */10", "bytes=4-2": "", "bytes=a-b": "", "bytes=-": "",
		"bytes=-0": "bytes */10", "Bytes=-000": "bytes */10", "bytes=99999999999999999999-": "bytes */10",
		"bytes=99999999999999999999-999999999999999999999": "bytes */10",
	} {
		r := fetch(t, p, w, f, "Range", header)
		answered(t, r, http.StatusRequestedRangeNotSatisfiable, map[string]any{
			"error": "range is outside the file", "code": "range_not_satisfiable",
		})
		for name, want := range map[string]string{
			"Content-Range": contentRange, "Content-Type": "application/json; charset=utf-8", "Content-Length": strconv.Itoa(len(r.Body)),
			"Content-Disposition": "", "Repr-Digest": "", "Cache-Control": "private, no-store",
		} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", header, name, got, want)
			}
		}
		safe(t, r.Header)
	}
}
