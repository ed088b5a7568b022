package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

// commandsLines match the commands that the greeting says to paste.
var commandsLines = regexp.MustCompile(`(?s)paste this into another terminal:\n(.*)\nThe data (?:and the admin token )?are in `)

// Planted: the commands read DATA_DIR/admin_token even when ADMIN_TOKEN was given; that token is printed.
func TestGreeting_CommandsWorkAsPasted(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("the greeting's commands need %s: %v", program, err)
		}
	}
	for name, given := range map[string]string{"generated": "", "given": "ADMIN_TOKEN=" + servertest.AdminToken} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := newFolder(t)
			data := filepath.Join(dir, `it's $HOME "here"`) // the shell would expand this name if it were not quoted
			p := serve(t, dir, slices.DeleteFunc([]string{"DATA_DIR=" + data, given}, func(s string) bool { return s == "" })...)
			commands := p.await(t, p.stdout, commandsLines)

			bash := exec.CommandContext(t.Context(), "bash")
			bash.Dir = newFolder(t)
			bash.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + bash.Dir, given}
			bash.Stdin = strings.NewReader(commands)
			var stderr strings.Builder
			bash.Stderr = &stderr
			printed, err := bash.Output()
			if err != nil || stderr.Len() > 0 {
				t.Fatalf("bash: %v, stderr %q", err, stderr.String())
			}
			for _, want := range []string{`"name":"hello.txt"`, "\nhello, laptop\n", "\n" + `{"acked":true}` + "\n"} {
				if !strings.Contains(string(printed), want) {
					t.Errorf("the commands did not print %q", want)
				}
			}
			if strings.Contains(p.stdout.String(), servertest.AdminToken) {
				t.Error("the greeting has the token that was given")
			}
			if t.Failed() {
				t.Logf("commands:\n%s\nprinted:\n%s", commands, printed)
			}
			p.stop(t)
		})
	}
}

func TestGreeting_IsNotForOperators(t *testing.T) {
	t.Parallel()
	p := serveOn(t, newDatabase(t))
	p.stop(t)
	if printed := p.stdout.String(); printed != "" {
		t.Errorf("with DATABASE_URL it printed %q", printed)
	}
}
