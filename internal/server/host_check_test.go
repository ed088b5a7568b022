package server_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// A web site must not register workspaces with the platform of whoever visits it, neither by a request from its page nor
// by a name that it makes resolve to 127.0.0.1. Planted: no check; the Origin not looked at; "localhost.evil.example"
// taken for localhost; a request with a token checked; the check on every address.
func TestRegister_FromAWebSiteIsRefusedOnLoopback(t *testing.T) {
	t.Parallel()
	local := servertest.Start(t, func(s *config.Settings) { s.PublicURL = "https://platform.example" })
	listed := servertest.Start(t, func(s *config.Settings) { s.CORSOrigins = "https://canvas.example" })
	everywhere := servertest.Start(t, func(s *config.Settings) { s.Addr = "0.0.0.0:0" })
	_, port, _ := strings.Cut(strings.TrimPrefix(local.URL, "http://"), ":")
	for _, c := range []struct {
		p                   *servertest.Platform
		host, origin, token string
		want                int
		code                string
	}{
		{local, "localhost:" + port, "", "", http.StatusOK, ""},
		{local, "LOCALHOST", "", "", http.StatusOK, ""},
		{local, "127.0.0.1:" + port, "", "", http.StatusOK, ""},
		{local, "[::1]:" + port, "", "", http.StatusOK, ""},
		{local, "[::1]", "", "", http.StatusOK, ""},
		{local, "Platform.example", "", "", http.StatusOK, ""},
		{local, "platform.example:8443", "https://platform.example:8443", "", http.StatusOK, ""},
		{local, "localhost:" + port, "http://localhost:3000", "", http.StatusOK, ""},
		{local, "evil.example:" + port, "", "", http.StatusForbidden, "host_not_allowed"},
		{local, "localhost.evil.example", "", "", http.StatusForbidden, "host_not_allowed"},
		{local, "192.168.1.2", "", "", http.StatusForbidden, "host_not_allowed"},
		{local, "evil.example:" + port, "http://evil.example:" + port, "", http.StatusForbidden, "host_not_allowed"},
		{local, "localhost:" + port, "https://evil.example", "", http.StatusForbidden, "origin_not_allowed"},
		{local, "localhost:" + port, "null", "", http.StatusForbidden, "origin_not_allowed"},
		{local, "evil.example", "https://evil.example", admin, http.StatusOK, ""}, // a site has no token
		{listed, "localhost", "https://canvas.example", "", http.StatusOK, ""},
		{listed, "localhost", "https://evil.example", "", http.StatusForbidden, "origin_not_allowed"},
		{everywhere, "platform.example", "", "", http.StatusOK, ""},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, strings.Replace(c.p.URL, "[::]", "127.0.0.1", 1)+"/registry/register",
			strings.NewReader(registration(uuid.NewString(), `,"delivery_mode":"poll"`)))
		if err != nil {
			t.Fatal(err)
		}
		r.Host = c.host
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != c.want || !strings.Contains(string(body), c.code) {
			t.Errorf("Host %s, Origin %q, token %t: %d %s, want %d %s", c.host, c.origin, c.token != "", answer.StatusCode, body, c.want, c.code)
		}
	}
}
