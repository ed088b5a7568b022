package main

import (
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
)

func TestHelp_ListsEverySettingWithVariableAndDefault(t *testing.T) {
	t.Parallel()
	r := execute(t, newFolder(t), nil, "--help")
	if r.code != 0 || r.stderr != "" {
		t.Fatalf("exit code %d, stderr %q", r.code, r.stderr)
	}
	help := strings.Join(strings.Fields(r.stdout), " ") // however it is wrapped
	fields := reflect.VisibleFields(reflect.TypeFor[config.Settings]())
	if len(fields) < 17 {
		t.Fatalf("only %d settings were checked", len(fields))
	}
	for _, field := range fields {
		variable := field.Tag.Get("env")
		flag := "--" + strings.ToLower(strings.ReplaceAll(variable, "_", "-"))
		if variable == "" || !strings.Contains(help, flag+"=") {
			t.Errorf("%s: no flag %s in the help", field.Name, flag)
		}
		end := " ($" + variable + ")"
		if standard, ok := field.Tag.Lookup("default"); ok {
			end = " Default: " + standard + "." + end
		}
		if !strings.Contains(help, field.Tag.Get("help")+end) {
			t.Errorf("%s: no help that ends with%q", field.Name, end)
		}
	}
}

func TestHelp_ListsEveryCommand(t *testing.T) {
	t.Parallel()
	help := execute(t, newFolder(t), nil, "--help").stdout
	for _, command := range []string{"serve", "migrate up", "migrate down", "migrate status", "migrate force", "sweep", "ready", "version"} {
		if !strings.Contains(help, "\n  "+command+" ") {
			t.Errorf("no command %q in:\n%s", command, help)
		}
	}
}

func TestVersion_NamesTheProgramAndItsGo(t *testing.T) {
	t.Parallel()
	r := execute(t, newFolder(t), nil, "version")
	if fields := strings.Fields(r.stdout); r.code != 0 || len(fields) != 3 || fields[0] != "platform" || fields[2] != runtime.Version() {
		t.Errorf("exit code %d, %q", r.code, r.stdout)
	}
}

func TestCommandLine_MistakesGetAHintAndExitCode2(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"unknown command", []string{"nonsense"}, "nonsense"},
		{"unknown flag", []string{"--nonsense"}, "--nonsense"},
		{"flag without its value", []string{"--addr"}, "--addr"},
		{"unknown migrate command", []string{"migrate", "sideways"}, "sideways"},
		{"not a number", []string{"migrate", "down", "many"}, "many"},
		{"contradictory flags", []string{"sweep", "--once", "--dry-run"}, "--dry-run"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := execute(t, newFolder(t), nil, c.args...)
			if r.code != 2 {
				t.Errorf("exit code %d", r.code)
			}
			if !strings.HasPrefix(r.stderr, "platform: ") || !strings.Contains(r.stderr, c.want) || !strings.HasSuffix(r.stderr, "; see 'platform --help'\n") {
				t.Errorf("stderr: %q", r.stderr)
			}
			if strings.Count(r.stderr, "\n") != 1 || r.stdout != "" {
				t.Errorf("not exactly one sentence: %q, stdout %q", r.stderr, r.stdout)
			}
		})
	}
}
