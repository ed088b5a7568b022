package embeddedpg

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestStart_ReportsWhatToInstallWithoutPostgreSQL(t *testing.T) {
	t.Parallel()
	old := t.TempDir()
	fakeInstallation(t, old, "postgres (PostgreSQL) 13.14")
	_, err := start(t.Context(), testOptions(newDataDir(t)), places{path: t.TempDir() + ":" + old, folders: []string{"/nowhere/*/bin"}})
	if !errors.Is(err, ErrNoBinaries) {
		t.Fatalf("start: %v", err)
	}
	oneSentence(t, err.Error())
}

func TestFind_PrefersTheDataVersionThenThePathThenTheNewest(t *testing.T) {
	t.Parallel()
	usual := t.TempDir()
	for _, major := range []int{9, 14, 16, 15} {
		fakeInstallation(t, filepath.Join(usual, fmt.Sprint(major), "bin"), fmt.Sprintf("postgres (PostgreSQL) %d.3", major))
	}
	onPath := t.TempDir()
	for _, name := range []string{"postgres", "initdb"} {
		if err := os.Symlink(filepath.Join(usual, "15/bin", name), filepath.Join(onPath, name)); err != nil {
			t.Fatal(err)
		}
	}
	folders := []string{filepath.Join(usual, "*/bin")}
	for _, c := range []struct {
		path      string
		dataMajor int
		want      int
	}{
		{path: "", want: 16},
		{path: t.TempDir() + ":" + onPath, want: 15},
		{path: onPath, dataMajor: 14, want: 14},
		{path: onPath, dataMajor: 15, want: 15},
	} {
		got, err := places{path: c.path, folders: folders}.find(t.Context(), c.dataMajor)
		if err != nil {
			t.Fatal(err)
		}
		want := filepath.Join(usual, fmt.Sprint(c.want), "bin")
		if resolved, err := filepath.EvalSymlinks(want); err == nil {
			want = resolved
		}
		if got.dir != want || got.major != c.want {
			t.Errorf("path %q, data of %d: version %d in %s, want %d in %s", c.path, c.dataMajor, got.major, got.dir, c.want, want)
		}
	}
	if _, err := (places{folders: folders}).find(t.Context(), 17); !errors.Is(err, ErrDataDir) {
		t.Errorf("data of 17: %v", err)
	}
}

func TestFind_IgnoresRelativeEntriesOfThePath(t *testing.T) {
	here := t.TempDir()
	fakeInstallation(t, here, "postgres (PostgreSQL) 16.3")
	t.Chdir(here)
	if found, err := (places{path: ".:" + t.TempDir()}).find(t.Context(), 0); !errors.Is(err, ErrNoBinaries) {
		t.Errorf("found %+v, %v", found, err)
	}
}

func TestMajorVersion_ReadsEveryForm(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]int{
		"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n": 15,
		"postgres (PostgreSQL) 18beta1\n":                        18,
		"postgres (PostgreSQL) 17devel":                          17,
		"postgres (PostgreSQL) 9.6.24":                           9,
		"postgres (something) 15.1":                              0,
		"":                                                       0,
	} {
		if got := majorVersion(answer); got != want {
			t.Errorf("majorVersion(%q) is %d, want %d", answer, got, want)
		}
	}
}

func fakeInstallation(t *testing.T, dir, version string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"postgres", "initdb"} {
		script := "#!/bin/sh\necho '" + version + "'\n"
		if err := writeScript(filepath.Join(dir, name), []byte(script)); err != nil {
			t.Fatal(err)
		}
	}
}

// writeScript writes a program that is run at once. No other process may be forked meanwhile: it would inherit the open
// file, and a file that is open for writing cannot be executed (ETXTBSY).
func writeScript(path string, text []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, text, 0o755)
}
