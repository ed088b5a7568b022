package embeddedpg

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// minMajor is the oldest supported major version of PostgreSQL.
const minMajor = 14

// places are the folders to search for binaries.
type places struct {
	path    string   // in the form of $PATH
	folders []string // glob patterns
}

func usualPlaces() places {
	return places{path: os.Getenv("PATH"), folders: []string{
		"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
		"/usr/pgsql-*/bin",          // Red Hat, from PostgreSQL's repository
		"/usr/local/pgsql/bin",      // built from source
		"/opt/homebrew/opt/postgresql*/bin",
		"/usr/local/opt/postgresql*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
	}}
}

// binaries are the programs of one PostgreSQL installation.
type binaries struct {
	dir              string
	postgres, initdb string
	major            int
}

// find returns the installation whose major version is dataMajor, the version of existing data. If dataMajor is 0, it
// returns the first installation on the path, or else the newest.
func (p places) find(ctx context.Context, dataMajor int) (binaries, error) {
	installed := p.installed(ctx)
	if err := ctx.Err(); err != nil { // the search was cut short
		return binaries{}, fmt.Errorf("search for PostgreSQL: %w", err)
	}
	if len(installed) == 0 {
		return binaries{}, ErrNoBinaries
	}
	if dataMajor == 0 {
		return installed[0], nil
	}
	for _, b := range installed {
		if b.major == dataMajor {
			return b, nil
		}
	}
	return binaries{}, fmt.Errorf("%w: its data was created by PostgreSQL %d, but only version %d is installed: install version %[2]d, or choose another DATA_DIR",
		ErrDataDir, dataMajor, installed[0].major)
}

func (p places) installed(ctx context.Context) []binaries {
	var found []binaries
	add := func(dirs []string) []binaries {
		var added []binaries
		for _, dir := range dirs {
			b, ok := inspect(ctx, dir)
			if ok && !slices.ContainsFunc(found, func(f binaries) bool { return f.postgres == b.postgres }) {
				added = append(added, b)
			}
		}
		return added
	}
	found = add(filepath.SplitList(p.path))

	var usual []string
	for _, pattern := range p.folders {
		dirs, _ := filepath.Glob(pattern) // the patterns are constants, and well-formed
		usual = append(usual, dirs...)
	}
	newest := add(usual)
	slices.SortStableFunc(newest, func(a, b binaries) int { return cmp.Compare(b.major, a.major) })
	return append(found, newest...)
}

// inspect returns the installation in a folder, following symbolic links: on Debian the links in /usr/local/bin do not
// include every program.
func inspect(ctx context.Context, dir string) (binaries, bool) {
	if !filepath.IsAbs(dir) {
		return binaries{}, false // a relative entry of $PATH depends on the current folder
	}
	postgres, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres"))
	if err != nil {
		return binaries{}, false
	}
	b := binaries{dir: filepath.Dir(postgres), postgres: postgres}
	b.initdb, err = filepath.EvalSymlinks(filepath.Join(b.dir, "initdb"))
	if err != nil {
		return binaries{}, false
	}
	output, err := exec.CommandContext(ctx, b.postgres, "--version").Output()
	if err != nil {
		return binaries{}, false
	}
	b.major = majorVersion(string(output))
	return b, b.major >= minMajor
}

var versionPattern = regexp.MustCompile(`^postgres \(PostgreSQL\) (\d+)`)

// majorVersion parses the output of "postgres --version", such as "postgres (PostgreSQL) 15.18 (Debian
// 15.18-0+deb12u1)" or "postgres (PostgreSQL) 18beta1". It returns 0 for anything else.
func majorVersion(answer string) int {
	match := versionPattern.FindStringSubmatch(strings.TrimSpace(answer))
	if match == nil {
		return 0
	}
	major, _ := strconv.Atoi(match[1])
	return major
}
