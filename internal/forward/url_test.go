package forward

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

var urlCases = []struct {
	raw  string
	want error
}{
	{"https://agent.example.com", nil},
	{"http://agent.example.com:8080/base/?token=x", nil},
	{"HTTPS://Agent.Example.COM.", nil},
	{"http://a_b.example", nil},
	{"http://xn--bcher-kva.example", nil},
	{"http://intranet", nil}, // a name: the dial decides
	{"http://1.1.1.1:65535", nil},
	{"http://[2606:4700::1111]:1/", nil},
	{"http://notlocalhost", nil},
	{"http://localhost.example.com", nil},
	{"http://0x7f.example.com", nil},

	{"", ErrBadURL},
	{"agent.example.com", ErrBadURL},
	{"//agent.example.com", ErrBadURL},
	{"/path", ErrBadURL},
	{"ftp://agent.example.com", ErrBadURL},
	{"file:///etc/passwd", ErrBadURL},
	{"unix:///run/agent.sock", ErrBadURL},
	{"http:agent.example.com", ErrBadURL},
	{"http://", ErrBadURL},
	{"http:///path", ErrBadURL},
	{"http://:80", ErrBadURL},
	{" http://agent.example.com", ErrBadURL},
	{"http://agent.example.com ", ErrBadURL},
	{"http://agent.example.com\r\nHost: x", ErrBadURL},
	{"http://user@agent.example.com", ErrBadURL},
	{"http://user:secret@agent.example.com", ErrBadURL},
	{"http://@agent.example.com", ErrBadURL},
	{`http://agent.example.com\@127.0.0.1`, ErrBadURL},
	{"http://agent.example.com#top", ErrBadURL},
	{"http://agent.example.com/#", ErrBadURL},
	{"http://agent.example.com:", ErrBadURL},
	{"http://agent.example.com:0", ErrBadURL},
	{"http://agent.example.com:65536", ErrBadURL},
	{"http://agent.example.com:http", ErrBadURL},
	{"http://agent..example.com", ErrBadURL},
	{"http://.", ErrBadURL},
	{"http://" + strings.Repeat("a", 64), ErrBadURL},
	{"http://" + strings.Repeat("a.", 127) + "a", ErrBadURL},
	{"http://agent.example.com/" + strings.Repeat("a", maxURLBytes), ErrBadURL},
	{"http://bücher.example", ErrBadURL},
	{"http://127。0。0。1", ErrBadURL},
	{"http://①27.0.0.1", ErrBadURL},
	{"http://%31%32%37.0.0.1", ErrBadURL},
	{"http://0x7f.1", ErrBadURL},
	{"http://0x7f000001", ErrBadURL},
	{"http://0x", ErrBadURL},
	{"http://a.0X7f", ErrBadURL},
	{"http://2130706433", ErrBadURL},
	{"http://017700000001", ErrBadURL},
	{"http://0177.0.0.1", ErrBadURL},
	{"http://127.1", ErrBadURL},
	{"http://127.0.0.1.", ErrBadURL},
	{"http://127.0.0.256", ErrBadURL},
	{"http://8.8.8.08", ErrBadURL},
	{"http://[127.0.0.1]", ErrBadURL},
	{"http://[agent]", ErrBadURL},
	{"http://::1", ErrBadURL},
	{"http://::1:80", ErrBadURL},

	{"http://127.0.0.1", ErrDenied},
	{"http://10.0.0.1:8080/x", ErrDenied},
	{"http://169.254.169.254/latest/meta-data/", ErrDenied},
	{"http://0.0.0.0", ErrDenied},
	{"http://[::1]", ErrDenied},
	{"http://[::]:80", ErrDenied},
	{"http://[::ffff:127.0.0.1]", ErrDenied},
	{"http://[::ffff:7f00:1]", ErrDenied},
	{"http://[::127.0.0.1]", ErrDenied},
	{"http://[64:ff9b::7f00:1]", ErrDenied},
	{"http://[2002:7f00:1::]", ErrDenied},
	{"http://[fe80::1%25eth0]", ErrDenied},
	{"http://localhost", ErrDenied},
	{"http://LOCALHOST:8080", ErrDenied},
	{"http://localhost.", ErrDenied},
	{"http://agent.localhost", ErrDenied},
}

func TestCheckURL_AcceptsAndRefuses(t *testing.T) {
	t.Parallel()
	c := New(Options{})
	for _, tt := range urlCases {
		err := c.CheckURL(tt.raw)
		if tt.want == nil && err != nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("CheckURL(%q) = %v, want %v", tt.raw, err, tt.want)
		}
	}
}

func TestCheckURL_ErrorTextIsFitForClients(t *testing.T) {
	t.Parallel()
	c := New(Options{})
	for _, tt := range urlCases {
		err := c.CheckURL(tt.raw)
		if err == nil {
			continue
		}
		text := err.Error()
		if !strings.HasPrefix(text, "url ") || strings.Contains(text, "forward") ||
			strings.Contains(text, "parse") || strings.Contains(text, ErrBadURL.Error()) {
			t.Errorf("CheckURL(%q): %q does not read as a sentence about the url", tt.raw, text)
		}
	}
}

func TestCheckURL_AllowedNetworksAcceptLiteralsAndLocalhost(t *testing.T) {
	t.Parallel()
	tests := []struct {
		allow, raw string
		want       error
	}{
		{"127.0.0.0/8", "http://127.0.0.1:8000", nil},
		{"127.0.0.0/8", "http://[::ffff:127.0.0.1]:8000", nil},
		{"127.0.0.0/8", "http://localhost:8000", nil},
		{"::1/128", "http://localhost:8000", nil},
		{"::1/128", "http://127.0.0.1:8000", ErrDenied},
		{"10.0.0.0/8", "http://localhost:8000", ErrDenied},
		{"10.0.0.0/8", "http://10.9.8.7", nil},
		{"0.0.0.0/0", "http://2130706433", ErrBadURL},
	}
	for _, tt := range tests {
		c := New(Options{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix(tt.allow)}})
		if err := c.CheckURL(tt.raw); !errors.Is(err, tt.want) {
			t.Errorf("allow %s: CheckURL(%q) = %v, want %v", tt.allow, tt.raw, err, tt.want)
		}
	}
}

func TestIngestURL_AppendsToTheBasePath(t *testing.T) {
	t.Parallel()
	tests := []struct{ base, want string }{
		{"https://agent.example.com", "https://agent.example.com/internal/chat/uploads/ingest"},
		{"https://agent.example.com/", "https://agent.example.com/internal/chat/uploads/ingest"},
		{"https://agent.example.com//", "https://agent.example.com/internal/chat/uploads/ingest"},
		{"http://h:81/w/1", "http://h:81/w/1/internal/chat/uploads/ingest"},
		{"http://h/w/1/", "http://h/w/1/internal/chat/uploads/ingest"},
		{"http://h/a//b/../c", "http://h/a//b/../c/internal/chat/uploads/ingest"},
		{"http://h/a%2Fb%2F/", "http://h/a%2Fb%2F/internal/chat/uploads/ingest"},
		{"http://h/a b", "http://h/a%20b/internal/chat/uploads/ingest"},
		{"http://h/w?key=1", "http://h/w/internal/chat/uploads/ingest?key=1"},
		{"http://[::1]:8000", "http://[::1]:8000/internal/chat/uploads/ingest"},
	}
	for _, tt := range tests {
		if got, err := IngestURL(tt.base); err != nil || got != tt.want {
			t.Errorf("IngestURL(%q) = %q, %v; want %q", tt.base, got, err, tt.want)
		}
	}
	for _, bad := range []string{"", "agent", "ftp://h", "http://u@h", "http://h#f", "http://127.1"} {
		if got, err := IngestURL(bad); !errors.Is(err, ErrBadURL) {
			t.Errorf("IngestURL(%q) = %q, %v; want ErrBadURL", bad, got, err)
		}
	}
}

// FuzzCheckURL checks that an accepted URL is http(s), has a host and no user, and is no literal address
// that the standard library classifies as not global.
func FuzzCheckURL(f *testing.F) {
	for _, tt := range urlCases {
		f.Add(tt.raw)
	}
	c := New(Options{})
	f.Fuzz(func(t *testing.T, raw string) {
		if c.CheckURL(raw) != nil {
			return
		}
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatalf("accepted %q, which does not parse: %v", raw, err)
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Hostname() == "" || u.Fragment != "" {
			t.Fatalf("accepted %q: scheme %q, user %v, host %q", raw, u.Scheme, u.User, u.Host)
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			a = a.Unmap()
			if !a.IsGlobalUnicast() || a.IsPrivate() || c.guard.check(a) != nil {
				t.Fatalf("accepted %q, which names %s", raw, a)
			}
		}
		ingest, err := IngestURL(raw)
		if err != nil {
			t.Fatalf("accepted %q, but IngestURL: %v", raw, err)
		}
		v, err := url.Parse(ingest)
		if err != nil || v.Host != u.Host || !strings.HasSuffix(v.Path, ingestPath) {
			t.Fatalf("IngestURL(%q) = %q: %v", raw, ingest, err)
		}
	})
}
