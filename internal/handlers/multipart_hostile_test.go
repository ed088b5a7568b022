package handlers

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/spool"
)

const (
	hostileBoundary = "b"
	hostileType     = "multipart/form-data; boundary=" + hostileBoundary
	goodPart        = "--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"a.txt\"\r\n\r\ncontent\r\n"
	otherPart       = "--b\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\n\r\n"
)

// spooled spools a body within limits, and returns the files and the error. It fails the test if anything is
// left in the spool folder.
func spooled(t testing.TB, limits UploadLimits, contentType string, body io.Reader) ([]pendinguploads.NewFile, error) {
	t.Helper()
	dir := t.TempDir()
	h := &ChatFilesHandler{limits: limits}
	batch := spool.NewBatch(pendinguploads.Limits{MaxFileBytes: limits.MaxFileBytes, MaxBatchBytes: limits.MaxRequestBytes}, dir)
	r := httptest.NewRequest(http.MethodPost, "/", body)
	r.Header.Set("Content-Type", contentType)
	r.Body = http.MaxBytesReader(httptest.NewRecorder(), r.Body, limits.MaxRequestBytes+multipartOverheadBytes)
	err := h.spool(r, batch)
	files := batch.Files()
	if err := batch.Close(); err != nil {
		t.Error(err)
	}
	left, readErr := os.ReadDir(dir)
	if readErr != nil || len(left) > 0 {
		t.Errorf("left in the spool folder: %v %v", left, readErr)
	}
	return files, err
}

// repeated yields a text again and again.
type repeated struct {
	text string
	at   int
}

func (r *repeated) Read(b []byte) (int, error) {
	for n := 0; n < len(b); {
		piece := copy(b[n:], r.text[r.at:])
		n += piece
		r.at = (r.at + piece) % len(r.text)
	}
	return len(b), nil
}

// times is text n times, without holding it.
func times(n int, text string) io.Reader {
	return io.LimitReader(&repeated{text: text}, int64(n*len(text)))
}

func text(s string) io.Reader { return strings.NewReader(s) }

var usual = UploadLimits{MaxFileBytes: 100 << 20, MaxRequestBytes: 100 << 20, MaxFiles: 64}

// A hostile multipart body must cost neither memory nor disk. Not parallel: the test measures allocations.
// Planted: no bound on a part's header (10 MiB are buffered); no bound on other parts.
func TestSpool_HostileBodiesAreRefusedCheaply(t *testing.T) {
	const most = 6 << 20 // everything together, including the growth of a buffer of 1 MiB
	limits := UploadLimits{MaxFileBytes: 2 << 20, MaxRequestBytes: 20 << 20, MaxFiles: 64}
	cases := []struct {
		name string
		body io.Reader
		code string
	}{
		{"header line of 10 MiB", io.MultiReader(text("--b\r\nContent-Disposition: "), times(10<<20, "x"), text("\r\n\r\n\r\n--b--")), "part_header_too_large"},
		{"10,000 headers", io.MultiReader(text("--b\r\n"), times(10_000, "X-A: b\r\n"), text("\r\n\r\n--b--")), "part_header_too_large"},
		{"5,000 headers", io.MultiReader(text("--b\r\n"), times(5_000, "a:\r\n"), text("\r\n\r\n--b--")), "broken_multipart"},
		{"a header continued for ever", io.MultiReader(text("--b\r\nA: b\r\n"), &repeated{text: " c\r\n"}), "part_header_too_large"},
		{"10,000 files", io.MultiReader(times(10_000, goodPart), text("--b--")), "too_many_files"},
		{"10,000 other parts", io.MultiReader(times(10_000, otherPart), text("--b--")), "too_many_parts"},
		{"no part, for ever", &repeated{text: "preamble\r\n"}, "part_header_too_large"},
		{"one line, for ever", &repeated{text: "x"}, "broken_body"},
		{"zeros, for ever", io.MultiReader(text(goodPart[:len(goodPart)-2]), &repeated{text: "\x00"}), "file_too_large"},
		{"a file without end", io.MultiReader(text("--b\r\nContent-Disposition: form-data; name=files\r\n\r\n"), &repeated{text: "\r\n--c"}), "file_too_large"},
		{"a field without end", io.MultiReader(text("--b\r\nContent-Disposition: form-data; name=other\r\n\r\n"), &repeated{text: "\r\n-"}), "request_too_large"},
		{"quotes for ever", io.MultiReader(text("--b\r\nContent-Disposition: form-data; name=\""), times(30<<10, `\"`), text("\r\n\r\n\r\n--b--")), "part_header_too_large"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := spooled(t, limits, hostileType, c.body)
			runtime.ReadMemStats(&after)
			wantCode(t, err, c.code)
			if cost := after.TotalAlloc - before.TotalAlloc; cost > most {
				t.Errorf("allocated %d bytes, want at most %d", cost, most)
			}
		})
	}
}

// wantCode checks that err is a 4xx refusal with that code.
func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	var r *refusal
	if !errors.As(err, &r) || r.status < 400 || r.status >= 500 || code != "" && r.code != code {
		t.Errorf("got %v, want a refusal with code %q", err, code)
	}
}

// The limit applies to headers only: content of any length passes, and so does a header just below the limit.
// Planted: the limit not disarmed for the content.
func TestSpool_HeaderLimitDoesNotLimitContent(t *testing.T) {
	t.Parallel()
	var body strings.Builder
	for i := range 60 {
		fmt.Fprintf(&body, "--b\r\nX-Padding: %s\r\nContent-Disposition: form-data; name=files; filename=f%d\r\n\r\n%s\r\n",
			strings.Repeat("p", 20<<10), i, strings.Repeat("c", 70<<10+i))
	}
	body.WriteString("--b--")
	files, err := spooled(t, usual, hostileType, text(body.String()))
	if err != nil || len(files) != 60 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for i, f := range files {
		if f.Name != fmt.Sprintf("f%d", i) || f.Size != int64(70<<10+i) {
			t.Errorf("file %d is %s of %d bytes", i, f.Name, f.Size)
		}
	}
}

// Bodies one byte below and above each cap. Planted: > instead of >=, and the reverse.
func TestSpool_CapsAreExact(t *testing.T) {
	t.Parallel()
	limits := UploadLimits{MaxFileBytes: 1000, MaxRequestBytes: 1500, MaxFiles: 3}
	body := func(sizes ...int) io.Reader {
		var b strings.Builder
		for _, n := range sizes {
			b.WriteString("--b\r\nContent-Disposition: form-data; name=files\r\n\r\n" + strings.Repeat("x", n) + "\r\n")
		}
		return text(b.String() + "--b--\r\n")
	}
	for _, c := range []struct {
		sizes []int
		code  string // "": passes
	}{
		{[]int{1000}, ""},
		{[]int{1001}, "file_too_large"},
		{[]int{1000, 500}, ""},
		{[]int{1000, 501}, "request_too_large"},
		{[]int{1000, 500, 0}, ""},
		{[]int{1000, 500, 1}, "request_too_large"},
		{[]int{0, 0, 0}, ""},
		{[]int{0, 0, 0, 0}, "too_many_files"},
	} {
		files, err := spooled(t, limits, hostileType, body(c.sizes...))
		if c.code != "" {
			wantCode(t, err, c.code)
		} else if err != nil || len(files) != len(c.sizes) {
			t.Errorf("%v: %d files, %v", c.sizes, len(files), err)
		}
	}
}

// failing yields a text and then an error.
func failing(s string, err error) io.Reader {
	return io.MultiReader(text(s), readerFunc(func([]byte) (int, error) { return 0, err }))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// A body whose reader fails is refused with the reader's error, wherever it fails.
func TestSpool_BodyThatFailsMidway(t *testing.T) {
	t.Parallel()
	whole := goodPart + otherPart + goodPart
	for n := range len(whole) {
		_, err := spooled(t, usual, hostileType, failing(whole[:n], io.ErrUnexpectedEOF))
		wantCode(t, err, "broken_body")
		if _, err := spooled(t, usual, hostileType, failing(whole[:n], errSlowBody)); !errors.Is(err, errSlowBody) {
			t.Errorf("slow after %q: %v", whole[:n], err)
		}
	}
}
