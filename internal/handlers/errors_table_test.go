package handlers

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/forward"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// domains are the packages whose errors reach a handler.
var domains = []string{"wsauth", "workspaces", "forward", "activity", "events", "pendinguploads", "spool"}

// withoutRow are the domain errors that need no row, and the reasons.
var withoutRow = map[string]string{
	"pendinguploads.ErrWrongStore": "no request meets it: the platform does not start",
}

// sentinels returns the exported Err variables of a package from its source, so that a new one cannot be
// missed.
func sentinels(t *testing.T, name string) []string {
	t.Helper()
	var found []string
	for _, decl := range declarations(t, os.DirFS("../"+name)) {
		vars, ok := decl.(*ast.GenDecl)
		if !ok || vars.Tok != token.VAR {
			continue
		}
		for _, spec := range vars.Specs {
			for _, ident := range spec.(*ast.ValueSpec).Names {
				if strings.HasPrefix(ident.Name, "Err") {
					found = append(found, name+"."+ident.Name)
				}
			}
		}
	}
	return found
}

// declarations returns the declarations of the package in folder, without its tests.
func declarations(t *testing.T, folder fs.FS) []ast.Decl {
	t.Helper()
	names, err := fs.Glob(folder, "*.go")
	if err != nil || len(names) == 0 {
		t.Fatalf("no source: %v", err)
	}
	var all []ast.Decl
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := fs.ReadFile(folder, name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, source, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, file.Decls...)
	}
	return all
}

// rows returns the names of the errors in the table of errors.go, from its source.
func rows(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, decl := range declarations(t, os.DirFS(".")) {
		vars, ok := decl.(*ast.GenDecl)
		if !ok || vars.Tok != token.VAR {
			continue
		}
		spec := vars.Specs[0].(*ast.ValueSpec)
		if spec.Names[0].Name != "errorResponses" {
			continue
		}
		for _, row := range spec.Values[0].(*ast.CompositeLit).Elts {
			if name, ok := row.(*ast.CompositeLit).Elts[0].(*ast.SelectorExpr); ok {
				names = append(names, name.X.(*ast.Ident).Name+"."+name.Sel.Name)
			}
		}
	}
	return names
}

func TestErrorResponses_HaveARowForEveryDomainError(t *testing.T) {
	t.Parallel()
	have, seen := rows(t), 0
	for _, name := range domains {
		found := sentinels(t, name)
		if len(found) == 0 {
			t.Errorf("no errors were found in package %s", name)
		}
		for _, sentinel := range found {
			seen++
			if !slices.Contains(have, sentinel) && withoutRow[sentinel] == "" {
				t.Errorf("%s has no row in errorResponses: clients would get a 500", sentinel)
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d errors were found", seen)
	}
}

var stableCode = regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)

func TestErrorResponses_AreFitForClients(t *testing.T) {
	t.Parallel()
	for _, p := range errorResponses {
		if p.status < 400 || p.status > 599 || !stableCode.MatchString(p.code) || p.message == "" || strings.Contains(p.message, p.err.Error()) {
			t.Errorf("%v: %d %s %q", p.err, p.status, p.code, p.message)
		}
		// The row applies however deep the error is wrapped.
		if got := refusalFor(fmt.Errorf("a: %w", fmt.Errorf("b: %w", p.err))); got.status != p.status || got.message != p.message {
			t.Errorf("%v: answered with %d %q", p.err, got.status, got.message)
		}
	}
}

// The answer for an address that cannot be called must not depend on the cause.
func TestErrorResponses_UnreachableHidesTheCause(t *testing.T) {
	t.Parallel()
	for _, why := range []error{forward.ErrDenied, forward.ErrBadURL, forward.ErrAnswerTooLarge} {
		if got := refusalFor(fmt.Errorf("%w: %w", forward.ErrUnreachable, why)); got.status != http.StatusBadGateway || got.message != "workspace unreachable" {
			t.Errorf("%v: answered with %d %q", why, got.status, got.message)
		}
	}
}

func TestErrorResponses_UnknownErrorIsGeneric(t *testing.T) {
	t.Parallel()
	got := refusalFor(errors.New("pq: password authentication failed for user postgres at /var/run"))
	if got.status != http.StatusInternalServerError || got.code != "internal" || strings.Contains(got.message, "pq") {
		t.Errorf("answered with %d %s %q", got.status, got.code, got.message)
	}
	// A refusal is not translated again.
	if got := refusalFor(stageFailed(pendinguploads.ErrNotFound)); got.status != http.StatusInternalServerError || got.code != "stage_failed" {
		t.Errorf("answered with %d %s", got.status, got.code)
	}
}
