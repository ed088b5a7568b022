package config_test

import (
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
)

// A token that can be guessed is refused where other machines reach the platform, and a warning on loopback. Planted: no
// look at the length; every address taken for loopback; ":8080" taken for loopback.
func TestLoad_AdminTokenThatCanBeGuessed(t *testing.T) {
	unset(t)
	short, long := strings.Repeat("x", config.MinAdminToken-1), strings.Repeat("x", config.MinAdminToken)
	for addr, loopback := range map[string]bool{
		"127.0.0.1:8080": true, "localhost:8080": true, "[::1]:8080": true, "127.9.9.9:0": true, "[::ffff:127.0.0.1]:1": true,
		":8080": false, "0.0.0.0:8080": false, "[::]:8080": false, "192.168.1.2:8080": false, "localhost.example:8080": false,
	} {
		_, err := parse(t, "--addr="+addr, "--admin-token="+long).Load()
		if err != nil {
			t.Errorf("%s: %d characters: %v", addr, len(long), err)
		}
		c, err := parse(t, "--addr="+addr, "--admin-token="+short).Load()
		if c.Loopback() != loopback || (err == nil) != loopback {
			t.Errorf("%s: loopback %t, %v; want %t", addr, c.Loopback(), err, loopback)
		}
		if err != nil && (!strings.Contains(err.Error(), "openssl rand -hex 32") || strings.Contains(err.Error(), short) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: %v, want one line that names openssl rand -hex 32", addr, err)
		}
		if warnings := strings.Join(c.Warnings(), "\n"); loopback && !strings.Contains(warnings, "openssl rand -hex 32") {
			t.Errorf("%s: warnings %q, want one on the token", addr, warnings)
		}
	}
}

// Planted: each of the conditions left out.
func TestWarnings(t *testing.T) {
	unset(t)
	token := "--admin-token=" + strings.Repeat("x", config.MinAdminToken)
	for name, test := range map[string]struct {
		args []string
		want []string // a part of each, in order
	}{
		"loopback":                 {nil, nil},
		"loopback, short token":    {[]string{"--admin-token=x"}, []string{"ADMIN_TOKEN has 1 characters"}},
		"everywhere":               {[]string{"--addr=:80", token}, []string{"plain HTTP", "registration is open"}},
		"everywhere, closed":       {[]string{"--addr=:80", token, "--registration=closed"}, []string{"plain HTTP"}},
		"everywhere, behind TLS":   {[]string{"--addr=:80", token, "--public-url=https://p.example"}, []string{"registration is open"}},
		"everywhere, behind a URL": {[]string{"--addr=:80", token, "--public-url=http://p.example", "--registration=closed"}, []string{"plain HTTP"}},
		"behind TLS and closed":    {[]string{"--addr=:80", token, "--public-url=https://p.example", "--registration=closed"}, nil},
	} {
		c, err := parse(t, test.args...).Load()
		if err != nil {
			t.Fatal(err)
		}
		got := c.Warnings()
		for i, want := range test.want {
			if i >= len(got) || !strings.Contains(got[i], want) {
				t.Errorf("%s: warnings %q, want %q", name, got, test.want)
				break
			}
		}
		if len(got) != len(test.want) {
			t.Errorf("%s: warnings %q, want %q", name, got, test.want)
		}
	}
}
