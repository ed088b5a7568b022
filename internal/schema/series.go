package schema

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/golang-migrate/migrate/v4/source"

	"github.com/molecule-ai/platform/migrations"
)

const (
	// base is the schema before staging: a platform on it serves, and refuses uploads to poll workspaces.
	base = 20260401110000

	// staging is the oldest schema with which a platform stages files. No database rests between the two: what once was
	// several migrations is applied and undone in one transaction.
	staging = 20260701100000

	// carrier is the last commit that has the migrations between them one by one.
	carrier = "42bbc23515e2"
)

// breaksOlder is the first line of an up file whose schema breaks platforms that do not know it. They
// refuse to serve on it, so they have to be stopped before it is applied.
const breaksOlder = "-- Breaks older platforms"

// between reports whether a migration is part of the step from base to staging.
func between(version uint) bool { return base < version && version < staging }

// betweenError says what to do with a database that an older platform left between base and staging.
func betweenError(version uint) error {
	return fmt.Errorf("the database is at version %d, between the schemas that this platform knows; "+
		"run 'platform migrate up' of commit %s first, the last one that migrates it further", version, carrier)
}

// A Migration is one version of the schema, an up and a down.
type Migration struct {
	Version uint // a timestamp, YYYYMMDDhhmmss
	Name    string
}

// String is the name of the migration's files, without .up.sql or .down.sql.
func (m Migration) String() string { return fmt.Sprintf("%d_%s", m.Version, m.Name) }

// A series is the migrations of a platform.
type series struct {
	files fs.ReadFileFS
	list  []Migration // oldest first
}

// own is the series of this binary.
var own = mustLoad(migrations.Files)

// mustLoad panics on a file that is not a migration, or is only one half of one: it would never be applied, or never
// undone.
func mustLoad(files fs.ReadFileFS) series {
	entries, err := fs.ReadDir(files, ".")
	if err != nil {
		panic(fmt.Sprintf("schema: list migrations: %v", err))
	}
	s := series{files: files}
	halves := map[Migration]int{}
	for _, e := range entries {
		m, err := source.Parse(e.Name())
		if err != nil {
			panic(fmt.Sprintf("schema: %s is not the name of a migration: %v", e.Name(), err))
		}
		both := Migration{Version: m.Version, Name: m.Identifier}
		if halves[both]++; halves[both] == 2 {
			s.list = append(s.list, both)
		}
	}
	if len(entries) != 2*len(s.list) {
		panic("schema: a migration lacks its up or its down")
	}
	slices.SortFunc(s.list, func(a, b Migration) int { return cmp.Compare(a.Version, b.Version) })
	return s
}

// bundles are the migrations by what is applied and undone together, oldest first.
func (s series) bundles() [][]Migration {
	var all [][]Migration
	for i, m := range s.list {
		if i == 0 || !between(s.list[i-1].Version) {
			all = append(all, nil)
		}
		all[len(all)-1] = append(all[len(all)-1], m)
	}
	return all
}

// read returns an up or a down file.
func (s series) read(m Migration, direction string) string {
	body, err := s.files.ReadFile(m.String() + "." + direction + ".sql")
	if err != nil {
		panic(fmt.Sprintf("schema: read a migration: %v", err)) // mustLoad has seen it, and it is part of the binary
	}
	return string(body)
}

// breaking returns the newest migration up to version that breaks older platforms, 0 for none.
func (s series) breaking(version uint) uint {
	for _, m := range slices.Backward(s.list) {
		if m.Version <= version && strings.HasPrefix(s.read(m, "up"), breaksOlder) {
			return m.Version
		}
	}
	return 0
}

func (s series) latest() uint { return s.list[len(s.list)-1].Version }

func (s series) knows(version uint) bool {
	return slices.ContainsFunc(s.list, func(m Migration) bool { return m.Version == version })
}

// label is the version with its name, if this platform knows it.
func (s series) label(version uint) string {
	if i := slices.IndexFunc(s.list, func(m Migration) bool { return m.Version == version }); i >= 0 {
		return s.list[i].String()
	}
	if version == 0 {
		return "the empty database"
	}
	return fmt.Sprintf("version %d", version)
}
