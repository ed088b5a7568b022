package config

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of settings into docs/configuration.md")

const (
	docsPath  = "../../docs/configuration.md"
	tableHead = "| variable | default | |\n|---|---|---|\n"
)

// settingsTable is the table of all settings, as docs/configuration.md has to have it.
func settingsTable() string {
	var b strings.Builder
	b.WriteString(tableHead)
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Settings]()) {
		value := f.Tag.Get("default")
		if value != "" {
			value = "`" + value + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Tag.Get("env"), value, strings.ReplaceAll(f.Tag.Get("help"), "|", `\|`))
	}
	return b.String()
}

// Catches: a setting that is added, removed, renamed, or given another default or help, while docs/configuration.md
// still describes the old one.
func TestDocs_TableIsThatOfTheSettings(t *testing.T) {
	raw, err := os.ReadFile(docsPath)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(raw), tableHead)
	if !found {
		t.Fatalf("docs/configuration.md has no table that begins with\n%s", tableHead)
	}
	after := rest
	for strings.HasPrefix(after, "|") {
		_, after, _ = strings.Cut(after, "\n")
	}
	want := settingsTable()
	if tableHead+strings.TrimSuffix(rest, after) == want {
		return
	}
	if !*update {
		t.Fatalf("docs/configuration.md is out of date; run go test ./internal/config -run Docs -update. It should have:\n%s", want)
	}
	if err := os.WriteFile(docsPath, []byte(before+want+after), 0o644); err != nil { // a page to read
		t.Fatal(err)
	}
}
