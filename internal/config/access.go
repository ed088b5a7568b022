package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// MinAdminToken is the minimum length of ADMIN_TOKEN, in characters, on an address that other machines reach. 32
// hexadecimal characters are 128 random bits.
const MinAdminToken = 32

// Loopback reports whether only this machine reaches the address of the platform.
func (c Config) Loopback() bool {
	host, _, err := net.SplitHostPort(c.Addr)
	return err == nil && LoopbackHost(host)
}

// LoopbackHost reports whether host, without a port, is localhost or a loopback address. A name that merely resolves to
// one is not: whoever owns the name can change that.
func LoopbackHost(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// Warnings returns what is accepted and still a risk, each a sentence for the operator.
func (c Config) Warnings() []string {
	var warnings []string
	if n := len(c.AdminToken); n > 0 && n < MinAdminToken {
		warnings = append(warnings, fmt.Sprintf("ADMIN_TOKEN has %d characters and can be guessed; "+
			"write at least %d, for example from 'openssl rand -hex 32'", n, MinAdminToken))
	}
	if c.Loopback() {
		return warnings
	}
	if !strings.HasPrefix(c.PublicURL, "https://") {
		warnings = append(warnings, fmt.Sprintf("ADDR %s serves plain HTTP to other machines, so tokens and files can be read on the way; "+
			"put a proxy with TLS in front, and set PUBLIC_URL to its https address", c.Addr))
	}
	if c.OpenRegistration {
		warnings = append(warnings, fmt.Sprintf("registration is open, and ADDR %s is not loopback: whoever reaches it can register workspaces; "+
			"set REGISTRATION=closed unless the network is trusted", c.Addr))
	}
	return warnings
}

// strongToken refuses an admin token that can be guessed where other machines reach the platform. A token or an address
// that is invalid is reported elsewhere.
func (l *loader) strongToken(s Settings) {
	n := len(s.AdminToken)
	if host, _, err := net.SplitHostPort(s.Addr); n == 0 || n >= MinAdminToken || err != nil || LoopbackHost(host) || !visible(s.AdminToken) {
		return
	}
	l.errs = append(l.errs, fmt.Errorf("ADMIN_TOKEN has %d characters and can be guessed, and ADDR %s is not loopback; "+
		"write at least %d, for example from 'openssl rand -hex 32'", n, s.Addr, MinAdminToken))
}

// publicURL accepts "" or an origin; a slash at its end is dropped.
func (l *loader) publicURL(name, value string) string {
	if value == "" {
		return ""
	}
	origin := strings.TrimSuffix(value, "/")
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || origin != u.Scheme+"://"+u.Host {
		// The value is left out of the error: it may hold a password.
		l.errs = append(l.errs, fmt.Errorf("%s is not an origin; write http or https and a host, such as https://platform.example, without a path", name))
		return ""
	}
	return origin
}

// visible reports whether an HTTP header can carry the value as a token.
func visible(value string) bool {
	return !strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' })
}
