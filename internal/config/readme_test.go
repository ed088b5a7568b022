package config

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

// Catches: a setting that is added, renamed, or given another default or help, while README
// goes on telling what was.
func TestREADME_TableIsThatOfTheSettings(t *testing.T) {
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
