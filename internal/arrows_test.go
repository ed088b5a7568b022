// Package internal holds no code. Its test keeps the imports between the packages pointing one way.
package internal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/molecule-ai/platform/"

// layers is the allowed order, written down once: a package imports only packages of layers below its own.
// Adding a package means choosing its layer here. docs/architecture.md draws the same picture.
var layers = [][]string{
	{"migrations", "internal/config", "internal/database", "internal/fairshare", "internal/forward", "internal/jsoncheck", "internal/metrics", "internal/objectstore", "internal/uploadname"},
	{"internal/embeddedpg", "internal/notify", "internal/schema", "internal/wsauth"},
	{"internal/activity", "internal/testcluster", "internal/embeddedpg/pgtest", "internal/workspaces"},
	{"internal/database/databasetest", "internal/events", "internal/objectstore/s3test", "internal/pendinguploads"},
	{"internal/pendinguploads/storagetest", "internal/pendinguploads/storageadmin", "internal/spool", "internal/sweeper", "internal/tracing"},
	{"internal/handlers"},
	{"internal/server"},
	{"internal/server/servertest"},
	{"cmd/bench", "cmd/chaos", "cmd/platform", "cmd/scaling", "cmd/trycluster"},
}

// reserved names who may import what the rest of the code must not know.
var reserved = map[string][]string{
	"github.com/gin-gonic/gin": {"internal/handlers", "internal/server", "internal/wsauth", "cmd/bench"},
	"github.com/aws/":          {"internal/objectstore", "internal/objectstore/s3test"},
}

// forbidden names, for a package, what its documentation says it does not know.
var forbidden = map[string][]string{
	"internal/pendinguploads": {"net/http", "net/textproto", "mime", "mime/multipart"},
}

// goPackage is what this test reads of `go list -json`.
type goPackage struct {
	ImportPath string
	Imports    []string
}

func goList(t *testing.T) []goPackage {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"...")
	cmd.Stderr = &stderr
	raw, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var packages []goPackage
	for d := json.NewDecoder(bytes.NewReader(raw)); ; {
		var p goPackage
		if err := d.Decode(&p); err == io.EOF {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// upward returns a sentence for each import that the order does not allow.
func upward(packages []goPackage) []string {
	layer := map[string]int{}
	for i, names := range layers {
		for _, name := range names {
			layer[name] = i
		}
	}
	var wrong []string
	for _, p := range packages {
		from := strings.TrimPrefix(p.ImportPath, module)
		if from == "internal" { // this test
			continue
		}
		own, known := layer[from]
		if !known {
			wrong = append(wrong, from+" has no layer; add it to layers in internal/arrows_test.go")
			continue
		}
		for _, path := range p.Imports {
			if to, ours := strings.CutPrefix(path, module); ours && layer[to] >= own {
				wrong = append(wrong, fmt.Sprintf("%s (layer %d) imports %s (layer %d): arrows point down only", from, own, to, layer[to]))
			}
			if slices.Contains(forbidden[from], path) {
				wrong = append(wrong, fmt.Sprintf("%s imports %s, which its documentation says it does not know", from, path))
			}
			for prefix, allowed := range reserved {
				if strings.HasPrefix(path, prefix) && !slices.Contains(allowed, from) {
					wrong = append(wrong, fmt.Sprintf("%s imports %s, which only %s may", from, path, strings.Join(allowed, ", ")))
				}
			}
		}
	}
	return wrong
}

// Planted: an import of handlers in pendinguploads, one of gin in activity, a package without a layer.
func TestArrows_PointDown(t *testing.T) {
	t.Parallel()
	packages := goList(t)
	if len(packages) < 20 {
		t.Fatalf("go list found only %d packages", len(packages))
	}
	for _, sentence := range upward(packages) {
		t.Error(sentence)
	}
}

func TestArrows_EachViolationIsNamed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		from, to string
		want     string
	}{
		"up":         {"internal/activity", module + "internal/handlers", "arrows point down only"},
		"same layer": {"internal/workspaces", module + "internal/activity", "arrows point down only"},
		"reserved":   {"internal/activity", "github.com/gin-gonic/gin", "which only"},
		"forbidden":  {"internal/pendinguploads", "mime", "does not know"},
		"new":        {"internal/util", "fmt", "has no layer"},
	} {
		got := upward([]goPackage{{ImportPath: module + c.from, Imports: []string{c.to}}})
		if len(got) != 1 || !strings.Contains(got[0], c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := upward([]goPackage{{ImportPath: module + "internal/server", Imports: []string{module + "internal/handlers", "fmt"}}}); len(got) != 0 {
		t.Errorf("down: %q", got)
	}
}

// Names that say nothing attract everything.
func TestArrows_NoPackageIsACatchAll(t *testing.T) {
	t.Parallel()
	for _, p := range goList(t) {
		base := p.ImportPath[strings.LastIndex(p.ImportPath, "/")+1:]
		if slices.Contains([]string{"util", "utils", "common", "models", "helpers", "misc", "shared"}, base) {
			t.Errorf("%s: name the package by what it does", p.ImportPath)
		}
	}
}
