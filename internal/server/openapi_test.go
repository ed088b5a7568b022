package server_test

import (
	"bytes"
	"regexp"
	"slices"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/molecule-ai/platform/internal/server"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

var pathParameter = regexp.MustCompile(`\{(\w+)\}`)

// operations returns the operations of the OpenAPI file by method and path, written as gin
// writes them.
func operations(t testing.TB) map[string]*openapi3.Operation {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(server.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := map[string]*openapi3.Operation{}
	for path, item := range doc.Paths.Map() {
		for method, operation := range item.Operations() {
			if operation.Security == nil {
				operation.Security = &doc.Security
			}
			all[method+" "+pathParameter.ReplaceAllString(path, ":$1")] = operation
		}
	}
	return all
}

func TestOpenAPI_HasTheRoutesAndNoOthers(t *testing.T) {
	t.Parallel()
	inFile := operations(t)
	for _, route := range routes(t) {
		key := route.Method + " " + route.Path
		if inFile[key] == nil {
			t.Errorf("%s is served, and not in openapi.yaml", key)
		}
		delete(inFile, key)
	}
	for key := range inFile {
		t.Errorf("%s is in openapi.yaml, and not served", key)
	}
}

// Who may call is in the file too; TestRoutes_Guarded has it from the router's list.
func TestOpenAPI_SaysWhichTokenIsNeeded(t *testing.T) {
	t.Parallel()
	for key, operation := range operations(t) {
		var schemes []string
		for _, requirement := range *operation.Security {
			if len(requirement) == 0 {
				schemes = append(schemes, "none")
			}
			for scheme := range requirement {
				schemes = append(schemes, scheme)
			}
		}
		want := []string{"workspaceToken", "adminToken"}
		switch {
		case public[key] != "":
			want = nil
		case key == "POST /registry/register":
			want = []string{"none", "workspaceToken", "adminToken"}
		case adminOnly[key]:
			want = []string{"adminToken"}
		}
		if !slices.Equal(schemes, want) {
			t.Errorf("%s: security %v, want %v", key, schemes, want)
		}
	}
}

func TestOpenAPI_IsServedAsItIs(t *testing.T) {
	t.Parallel()
	r := servertest.Start(t).Do(t, servertest.Request{Path: "/openapi.yaml"})
	if r.Status != 200 || !bytes.Equal(r.Body, server.OpenAPI) {
		t.Errorf("%d and %d bytes, want 200 and the file of %d bytes", r.Status, len(r.Body), len(server.OpenAPI))
	}
}
