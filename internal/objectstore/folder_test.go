package objectstore

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/uuid"
)

const spaceName = "11111111111141118111111111111111"

var space = uuid.MustParse("11111111-1111-4111-8111-111111111111")

func openTestFolder(t *testing.T) (*Store, *folder) {
	t.Helper()
	s, err := Open(t.Context(), "file://"+t.TempDir(), space)
	if err != nil {
		t.Fatal(err)
	}
	return s, s.backend.(*folder)
}

// files are the names of all files in a folder.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			name, _ := filepath.Rel(dir, path)
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// When Write returns, the object is on the disk under its name, and so are the names of the folders
// that lead to it. Its bytes are there before its name. Planted: the object not synced; synced after the
// rename; the folders above not synced.
func TestFolder_WriteSyncsTheObjectAndTheWayToIt(t *testing.T) {
	t.Parallel()
	s, f := openTestFolder(t)
	root := f.dir
	var synced []string
	failAt := -1
	errDisk := errors.New("the disk fails")
	f.fsync = func(file *os.File) error {
		if len(synced) == failAt {
			return errDisk
		}
		relative, err := filepath.Rel(root, file.Name())
		if err != nil {
			t.Error(err)
		}
		if strings.HasSuffix(relative, ".tmp") {
			relative, _, _ = strings.Cut(relative, ".")
			if _, err := os.Stat(filepath.Join(root, relative)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s has its name before its bytes are synced: %v", relative, err)
			}
		}
		synced = append(synced, relative)
		return file.Sync()
	}
	write := func(key string) error {
		synced = nil
		return s.Write(t.Context(), uuid.MustParse(key), 5, strings.NewReader("hello"))
	}
	if err := write("ab000000-0000-4000-8000-000000000000"); err != nil {
		t.Fatal(err)
	}
	want := []string{spaceName + "/ab/ab000000000040008000000000000000", spaceName + "/ab", spaceName, "."}
	if !slices.Equal(synced, want) {
		t.Errorf("synced %q, want %q", synced, want)
	}
	if err := write("ab000000-0000-4000-8000-000000000001"); err != nil || len(synced) != 2 {
		t.Errorf("the next one in the same folder: synced %q, %v", synced, err)
	}
	failing := uuid.MustParse("cd000000-0000-4000-8000-000000000000")
	for failAt = range 4 {
		if err := write(failing.String()); !errors.Is(err, errDisk) {
			t.Errorf("sync %d fails: %v", failAt, err)
		}
		if err := s.Delete(t.Context(), failing); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Stat(filepath.Join(root, spaceName)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
}

// A write that fails leaves neither an object nor a part of one. Planted: the temporary file not removed;
// the size not compared; the context not looked at.
func TestFolder_WriteThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	errBroken := errors.New("broken")
	for name, c := range map[string]struct {
		ctx     context.Context // a case of the table
		content io.Reader
		want    error
	}{
		"shorter":  {t.Context(), strings.NewReader("hell"), errLength},
		"longer":   {t.Context(), strings.NewReader("hello!"), errLength},
		"broken":   {t.Context(), io.MultiReader(strings.NewReader("he"), iotest.ErrReader(errBroken)), errBroken},
		"canceled": {canceled, strings.NewReader("hello"), context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, f := openTestFolder(t)
			if err := s.Write(c.ctx, uuid.New(), 5, c.content); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if left := files(t, f.dir); len(left) != 0 {
				t.Errorf("left %q", left)
			}
		})
	}
}

// Folders that the previous build wrote, with another library, are read on, and new objects go to the same
// places. Planted: another folder for an object; another end of temporary files.
func TestFolder_ReadsWhatThePreviousBuildWrote(t *testing.T) {
	t.Parallel()
	s, f := openTestFolder(t)
	object := spaceName + "/cd/cd000000000040008000000000000000"
	partial := spaceName + "/cd/cd000000000040008000000000000001.18a3f0c2d4e5f607.tmp"
	for name, content := range map[string]string{object: "hello", partial: "hel"} {
		if err := os.MkdirAll(filepath.Dir(f.path(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f.path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key := uuid.MustParse("cd000000-0000-4000-8000-000000000000")
	r, size, err := s.Read(t.Context(), key, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "ello" || size != 5 {
		t.Errorf("%q of %d bytes, %v", got, size, err)
	}
	if size, err := s.Size(t.Context(), key); err != nil || size != 5 {
		t.Errorf("size %d, %v", size, err)
	}
	var found []Object
	if err := s.List(t.Context(), func(o Object) error { found = append(found, o); return nil }); err != nil || len(found) != 2 {
		t.Fatalf("%+v, %v", found, err)
	}
	if found[0].Name != object || found[0].Key != key || found[0].Partial || found[0].Size != 5 || found[1].Name != partial || !found[1].Partial {
		t.Errorf("%+v", found)
	}
	if err := s.Write(t.Context(), key, 3, strings.NewReader("new")); err != nil {
		t.Fatal(err)
	}
	for _, o := range found {
		if err := s.Remove(t.Context(), o.Name); err != nil {
			t.Error(err)
		}
	}
	if left := files(t, f.dir); len(left) != 0 {
		t.Errorf("left %q", left)
	}
}

func TestFolder_MissingObjectsAndNames(t *testing.T) {
	t.Parallel()
	s, f := openTestFolder(t)
	if err := s.List(t.Context(), func(o Object) error { return errors.New(o.Name) }); err != nil {
		t.Errorf("an empty folder: %v", err)
	}
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if _, _, err := s.Read(t.Context(), uuid.New(), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read: %v", err)
	}
	if _, err := s.Size(t.Context(), uuid.New()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("size: %v", err)
	}
	if err := s.Delete(t.Context(), uuid.New()); err != nil {
		t.Errorf("delete: %v", err)
	}
	if signed, err := s.SignedURL(t.Context(), uuid.New(), 0); signed != "" || err != nil {
		t.Errorf("%q, %v", signed, err)
	}
	if err := os.WriteFile(f.path(spaceName+"/notes"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	errStop := errors.New("stop")
	if err := s.List(t.Context(), func(o Object) error { return errStop }); err != errStop { // as it is
		t.Errorf("the error of the caller comes back as %v", err)
	}
	if err := s.List(t.Context(), func(o Object) error {
		if o.Key != uuid.Nil {
			t.Errorf("%+v", o)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if _, err := Open(t.Context(), "file://"+f.path(spaceName+"/notes"), space); err == nil {
		t.Error("a file is opened as a folder")
	}
}

// A folder that cannot be written is explained. The names above are files, since root may write anywhere.
func TestFolder_ProbeSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	s, f := openTestFolder(t)
	if err := os.WriteFile(f.path(spaceName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Probe(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "the folder "+f.dir+" cannot be written: ") {
		t.Error(err)
	}
	if got := f.explain(t.Context(), &fs.PathError{Err: fs.ErrPermission}); got != "the platform's user may not write in the folder "+f.dir {
		t.Error(got)
	}
}
