package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

const (
	// startLimit bounds the time until the platform reports that it cannot start; it waits 10 s for a database that
	// does not answer.
	startLimit = 20 * time.Second

	password = "hunter2hunter2hunter2hunter2hunter2"

	// closedAddr has a reserved port, which no program listens on by chance.
	closedAddr = "127.0.0.1:1"
)

// Every reason not to start is reported in one sentence, without secrets and without internals, and leaves no process
// running.
func TestServe_ReportsWhyItCannotStart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, dir string) (env []string)
		want    []string // one line each, with these words
	}{
		{"the port is taken", func(t *testing.T, _ string) []string {
			return []string{"ADDR=" + listen(t)}
		}, []string{"platform: cannot listen on 127.0.0.1:… address already in use … --addr"}},

		{"another instance runs on the data folder", func(t *testing.T, dir string) []string {
			running := serve(t, dir)
			t.Cleanup(func() { running.stop(t) })
			return nil
		}, []string{"platform: … another instance runs on the data folder … /data (process "}},

		{"the data folder is somebody else's", func(t *testing.T, dir string) []string {
			return []string{"DATA_DIR=" + somebodyElses(t, dir)}
		}, []string{"platform: … data folder cannot be used … belongs to user … not to … choose another DATA_DIR"}},

		{"the data folder is a file", func(t *testing.T, dir string) []string {
			if err := os.WriteFile(filepath.Join(dir, "data"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return nil
		}, []string{"platform: … data folder cannot be used … /data is not a folder"}},

		{"three values are bad", func(*testing.T, string) []string {
			return []string{"ADDR=nowhere", "MAX_FILES=none", "REGISTRATION=perhaps"}
		}, []string{"platform: the configuration is invalid:", `ADDR is "nowhere"; write `, `REGISTRATION is "perhaps"; write `, `MAX_FILES is "none"; write `}},

		{"secrets are bad", func(*testing.T, string) []string {
			return []string{"DATABASE_URL=postgres://platform:" + password + "@localhost:port/platform", "ADMIN_TOKEN=" + password + " "}
		}, []string{"platform: the configuration is invalid:", "DATABASE_URL cannot be parsed; write ", "ADMIN_TOKEN has characters … write visible ASCII"}},

		{"the database does not answer", func(*testing.T, string) []string {
			return []string{"DATABASE_URL=postgres://platform:" + password + "@" + closedAddr + "/platform?sslmode=disable", "ADMIN_TOKEN=" + password}
		}, []string{"platform: the database of DATABASE_URL cannot be reached: … connection refused"}},

		{"the database accepts and says nothing", func(t *testing.T, _ string) []string {
			return []string{"DATABASE_URL=postgres://platform:" + password + "@" + listen(t) + "/platform?sslmode=disable", "ADMIN_TOKEN=" + password}
		}, []string{"platform: the database of DATABASE_URL cannot be reached: … timeout"}},

		{"the database has no admin token", func(*testing.T, string) []string {
			return []string{"DATABASE_URL=postgres://platform:" + password + "@" + closedAddr + "/platform?sslmode=disable"}
		}, []string{"platform: the configuration is invalid:", "ADMIN_TOKEN is empty … required … openssl rand -hex 32"}},

		{"the database is empty", func(t *testing.T, _ string) []string {
			return []string{"DATABASE_URL=" + pgtest.Empty(t), "ADMIN_TOKEN=" + password}
		}, []string{"platform: the database has no tables yet; run 'platform migrate up' with the same DATABASE_URL first"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := newFolder(t)
			env := c.prepare(t, dir)
			began := time.Now()
			r := execute(t, dir, env)
			if took := time.Since(began); took > startLimit {
				t.Errorf("it took %s to report it", took)
			}
			checkRefusal(t, r, c.want)
			if c.name != "another instance runs on the data folder" && exists(filepath.Join(dir, "data", "postgres")) {
				t.Error("a PostgreSQL was created, though the platform cannot serve")
			}
		})
	}
}

func TestMigrate_ReportsWhyItCannotStart(t *testing.T) {
	t.Parallel()
	r := execute(t, newFolder(t), []string{"DATABASE_URL=postgres://platform:" + password + "@" + closedAddr + "/platform?sslmode=disable"}, "migrate", "up")
	checkRefusal(t, r, []string{"platform: the database cannot be reached: … connection refused"})
}

// checkRefusal checks the exit code, and that each line has the words that "…" separates, in that order.
func checkRefusal(t *testing.T, r result, want []string) {
	t.Helper()
	if r.code != 1 {
		t.Errorf("exit code %d", r.code)
	}
	if r.stdout != "" {
		t.Errorf("stdout: %q", r.stdout)
	}
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines, want %d:\n%s", len(lines), len(want), r.stderr)
	}
	for _, words := range want {
		if !anyHas(lines, words) {
			t.Errorf("no line with %q in:\n%s", words, r.stderr)
		}
	}
	if !strings.HasPrefix(r.stderr, "platform: ") {
		t.Errorf("the message does not name the program: %q", r.stderr)
	}
	for _, never := range []string{password, "goroutine ", "panic:", ".go:"} {
		if strings.Contains(r.stderr, never) {
			t.Errorf("%q in:\n%s", never, r.stderr)
		}
	}
}

func anyHas(lines []string, words string) bool {
	for _, rest := range lines {
		found := true
		for word := range strings.SplitSeq(words, "…") {
			if _, rest, found = strings.Cut(rest, strings.TrimSpace(word)); !found {
				break
			}
		}
		if found {
			return true
		}
	}
	return false
}

// listen listens on an address until the end of the test.
func listen(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener.Addr().String()
}

// somebodyElses returns a folder that belongs to another user.
func somebodyElses(t *testing.T, dir string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		return "/" // root's
	}
	folder := filepath.Join(dir, "theirs")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(folder, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	return folder
}
