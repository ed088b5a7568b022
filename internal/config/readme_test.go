package config

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

// Planted faults: a setting added, renamed, or given another default or help text, without the README's table.
func TestREADME_TableMatchesTheSettings(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Settings]()) {
		value := f.Tag.Get("default")
		if value != "" {
			value = "`" + value + "`"
		}
		fmt.Fprintf(&want, "| `%s` | %s | %s |\n", f.Tag.Get("env"), value, strings.ReplaceAll(f.Tag.Get("help"), "|", `\|`))
	}
	if !strings.Contains(string(readme), want.String()) {
		t.Errorf("README.md does not have this table of settings:\n%s", want.String())
	}
}
