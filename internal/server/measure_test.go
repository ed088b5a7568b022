package server_test

import (
	"testing"

	"github.com/molecule-ai/platform/internal/handlers"
)

// A route that is renamed must not stop being timed. Planted: a letter changed in one of them.
func TestOperations_AreRoutes(t *testing.T) {
	t.Parallel()
	served := map[string]bool{}
	for _, route := range routes(t) {
		served[route.Method+" "+route.Path] = true
	}
	for route, operation := range handlers.Operations {
		if !served[route] {
			t.Errorf("%s is %q, and no route", operation, route)
		}
	}
}
