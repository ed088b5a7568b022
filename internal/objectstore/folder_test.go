package objectstore

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// When Write returns, the object is on the disk under its name, and so are the names of the folders
// that lead to it. Planted: the object not synced; those above not synced.
func TestFolder_WriteSyncsTheObjectAndTheWayToIt(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	namespace := uuid.MustParse("11111111-1111-4111-8111-111111111111")
	s, err := Open(t.Context(), "file://"+root, namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var flushed []string
	failAt := -1
	errDisk := errors.New("the disk fails")
	s.flush = func(path string) error {
		if len(flushed) == failAt {
			return errDisk
		}
		relative, err := filepath.Rel(root, path)
		if err != nil {
			t.Error(err)
		}
		flushed = append(flushed, relative)
		return flush(path)
	}
	write := func(key string) error {
		flushed = nil
		return s.Write(t.Context(), uuid.MustParse(key), 5, strings.NewReader("hello"))
	}
	space := "11111111111141118111111111111111"
	if err := write("ab000000-0000-4000-8000-000000000000"); err != nil {
		t.Fatal(err)
	}
	want := []string{space + "/ab/ab000000000040008000000000000000", space + "/ab", space, "."}
	if !slices.Equal(flushed, want) {
		t.Errorf("synced %q, want %q", flushed, want)
	}
	if err := write("ab000000-0000-4000-8000-000000000001"); err != nil || len(flushed) != 2 {
		t.Errorf("the next one in the same folder: synced %q, %v", flushed, err)
	}
	for failAt = range 4 {
		if err := write("cd000000-0000-4000-8000-000000000000"); !errors.Is(err, errDisk) {
			t.Errorf("sync %d fails: %v", failAt, err)
		}
	}
	if info, err := os.Stat(filepath.Join(root, space)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
}
