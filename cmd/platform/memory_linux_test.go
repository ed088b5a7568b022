package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"os"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

const (
	// memoryBound is generous, so that the test passes on a busy machine, but fails if one upload is held in memory.
	memoryBound = 96 << 20

	manyUploads, manyBytes = 8, 25 << 20
	largeBytes             = 90 << 20
)

func TestMemory_DoesNotGrowWithWhatIsSent(t *testing.T) {
	t.Parallel()
	p := serveOn(t, newDatabase(t))
	w := p.create(t, servertest.AdminToken, "poll", "")

	var g errgroup.Group
	for i := range manyUploads {
		g.Go(func() error {
			_, err := p.stream(w, byte(i), manyBytes)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	many := peak(t, p)
	large, err := p.stream(w, manyUploads, largeBytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.download(w, large); err != nil {
		t.Fatal(err)
	}
	most := peak(t, p)
	t.Logf("peak memory: %.1f MiB after %d uploads of %d MiB at once, %.1f MiB after one of %d MiB and its download",
		mib(many), manyUploads, manyBytes>>20, mib(most), largeBytes>>20)
	if most > memoryBound {
		t.Errorf("peak memory is %.1f MiB, want at most %d MiB", mib(most), memoryBound>>20)
	}
}

// stream uploads size random bytes without holding them in memory, and checks the answer.
func (p *process) stream(w servertest.Workspace, seed byte, size int64) (stagedFile, error) {
	r, body := io.Pipe()
	form := multipart.NewWriter(body)
	digest := sha256.New()
	go func() {
		_, err := io.CopyN(io.MultiWriter(part(form, "large.bin"), digest), rand.NewChaCha8([32]byte{seed}), size)
		if err == nil {
			err = form.Close()
		}
		body.CloseWithError(err)
	}()
	status, files, err := p.post(http.DefaultClient, w, form.FormDataContentType(), r)
	if err != nil || status != http.StatusOK || len(files) != 1 {
		return stagedFile{}, fmt.Errorf("upload: %d, %d files, %w", status, len(files), err)
	}
	if f := files[0]; f.Size != size || f.SHA256 != hex.EncodeToString(digest.Sum(nil)) {
		return f, fmt.Errorf("staged %+v, which is not what was sent", f)
	}
	return files[0], nil
}

// peak returns the process's peak memory, in bytes.
func peak(t *testing.T, p *process) int64 { return inMemory(t, p.pid(), "VmHWM") }

// inMemory returns the value of a line of a process's status, in bytes.
func inMemory(t *testing.T, pid int, line string) int64 {
	t.Helper()
	status, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer status.Close()
	for lines := bufio.NewScanner(status); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), line+":"); ok {
			var kib int64
			if _, err := fmt.Sscanf(value, "%d kB", &kib); err != nil {
				t.Fatalf("%q: %v", value, err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no %s in the status of the process", line)
	return 0
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
