package handlers

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/spool"
	"github.com/molecule-ai/platform/internal/uploadname"
)

// FuzzMultipart reads arbitrary bytes as the body of an upload. They must cause no panic, stay within the
// limits, leave nothing on disk, and cause only 4xx errors. An accepted body must be complete, and its files
// must have the size, name and type that they report.
func FuzzMultipart(f *testing.F) {
	limits := UploadLimits{MaxFileBytes: 64, MaxRequestBytes: 100, MaxFiles: 3}
	for _, seed := range []string{
		"", "--b--", "--b--\r\n", "--b\r\n", "\r\n--b\r\n\r\n\r\n--b--", goodPart + "--b--\r\n", goodPart + otherPart + "--b--", goodPart,
		goodPart + "--b\r\n", goodPart + "--b\r\nContent-Disposition: form-data; name=files\r\n", "preamble\r\n" + goodPart + "--b--\r\nepilogue",
		strings.Repeat(goodPart, 4) + "--b--", strings.Repeat(otherPart, 65) + goodPart + "--b--", goodPart + "--b-",
		strings.ReplaceAll(goodPart, "\r\n", "\n") + "--b--", "--b \t\r\nContent-Disposition: form-data; name=\"files\r\n\r\n--b-- \r\n",
		"--b\r\nContent-Disposition: form-data; name=files; filename*=UTF-8''%2e%2e\r\nContent-Type: a/b\x00\r\n\r\n" + strings.Repeat("x", 65) + "\r\n--b--",
		"--b\r\nContent-Disposition: attachment; name=files\r\n\r\n\r\n--b--", "--b\r\nContent-Disposition\r\n\r\n\r\n--b--",
	} {
		f.Add(seed, hostileType)
	}
	f.Add(goodPart+"--b--", `multipart/form-data; boundary="b"`)
	f.Add("--\r\n\r\n----", "multipart/form-data; boundary=\"\"")
	f.Add("----\r\nContent-Disposition: form-data; name=files\r\n\r\n\r\n------", "multipart/form-data; boundary=--")
	f.Fuzz(func(t *testing.T, body, contentType string) {
		files, err := spooled(t, limits, contentType, text(body))
		if err != nil {
			var r *refusal
			if !errors.As(err, &r) || r.status != http.StatusBadRequest && r.status != http.StatusRequestEntityTooLarge {
				t.Errorf("refused with %v", err)
			}
			return
		}
		if contentType == hostileType && !strings.Contains(body, "--b--") {
			t.Error("a body without its last boundary passed")
		}
		if len(files) == 0 || len(files) > limits.MaxFiles {
			t.Errorf("%d files passed", len(files))
		}
		var total int64
		for _, file := range files {
			total += file.Size
			if file.Size > limits.MaxFileBytes || !uploadname.ValidFilename(file.Name) || uploadname.CleanMIMEType(file.MIMEType, "") != file.MIMEType {
				t.Errorf("file %q of %d bytes as %q passed", file.Name, file.Size, file.MIMEType)
			}
		}
		if total > limits.MaxRequestBytes {
			t.Errorf("%d bytes passed", total)
		}
	})
}

// An accepted file has exactly the bytes that were sent, in memory and in a temporary file.
func TestSpool_KeepsEveryByte(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 4095, 4096, 4097, 1<<20 - 1, 1 << 20, 1<<20 + 1, 3<<20 + 7} {
		content := make([]byte, n)
		for i := range content {
			content[i] = "\r\n--b-x\x00"[(i*i+i/7)%8]
		}
		content = bytes.ReplaceAll(content, []byte("\r\n--b"), []byte("\r\n--c"))
		h := &ChatFilesHandler{limits: usual}
		batch := spool.NewBatch(pendinguploads.Limits{MaxFileBytes: usual.MaxFileBytes, MaxBatchBytes: usual.MaxRequestBytes}, t.TempDir())
		r, err := http.NewRequest(http.MethodPost, "/", io.MultiReader(
			text(goodPart+"--b\r\nContent-Disposition: form-data; name=files\r\n\r\n"), text(string(content)), text("\r\n"+goodPart+"--b--")))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", hostileType)
		if err := h.spool(r, batch); err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		for i, want := range []string{"content", string(content), "content"} {
			file := batch.Files()[i]
			got, err := io.ReadAll(file.Content)
			if err != nil || string(got) != want || file.SHA256 != sha256.Sum256([]byte(want)) || file.Size != int64(len(want)) {
				t.Errorf("%d bytes: file %d has %d bytes, %v", n, i, len(got), err)
			}
		}
		if err := batch.Close(); err != nil {
			t.Error(err)
		}
	}
}
