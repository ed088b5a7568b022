package forward

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// maxURLBytes is a length that all common browsers and proxies accept.
const maxURLBytes = 2048

// ingestPath is the path of a workspace's upload endpoint below its URL.
const ingestPath = "/internal/chat/uploads/ingest"

// urlError is a sentence for the person who registers the URL. It unwraps to ErrBadURL or ErrDenied.
type urlError struct {
	text string
	kind error
}

func (e *urlError) Error() string { return e.text }
func (e *urlError) Unwrap() error { return e.kind }

func badURL(text string) error { return &urlError{text, ErrBadURL} }

// CheckURL checks whether raw can be registered as a workspace's URL: an absolute http or https URL of
// at most 2048 bytes with a host, without user name, password and fragment, and not a literal address
// that the guard denies. Names are not resolved, because the result may change: Post checks the address
// that it dials. Only localhost and names below it are taken for 127.0.0.1 and ::1 (RFC 6761), and are
// accepted if the guard allows either.
//
// The error matches ErrBadURL or ErrDenied. Its text is fit for clients.
func (c *Client) CheckURL(raw string) error {
	u, err := parseURL(raw)
	if err != nil {
		return err
	}
	for _, a := range literalAddresses(u.Hostname()) {
		if err = c.guard.check(a); err == nil {
			return nil
		}
	}
	if err != nil {
		return &urlError{"url points to a private or reserved address, which this platform does not call", ErrDenied}
	}
	return nil
}

// IngestURL returns the upload endpoint of the workspace at base: base/internal/chat/uploads/ingest. It
// keeps the path and query of base, and does not double slashes at the end of the path. The error
// matches ErrBadURL.
func IngestURL(base string) (string, error) {
	u, err := parseURL(base)
	if err != nil {
		return "", err
	}
	escaped := strings.TrimRight(u.EscapedPath(), "/") + ingestPath
	if u.Path, err = url.PathUnescape(escaped); err != nil {
		return "", badURL("url has a path that is not properly escaped")
	}
	u.RawPath = escaped
	return u.String(), nil
}

// parseURL checks everything about a URL except what the guard decides.
func parseURL(raw string) (*url.URL, error) {
	if len(raw) > maxURLBytes {
		return nil, badURL("url must have at most " + strconv.Itoa(maxURLBytes) + " bytes")
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, badURL("url must be an absolute http or https address, such as https://agent.example.com")
	}
	if u.User != nil {
		return nil, badURL("url must not contain a user name or password")
	}
	if strings.Contains(raw, "#") {
		return nil, badURL("url must not contain a fragment (#)")
	}
	if !validPort(u) {
		return nil, badURL("url must have a port from 1 to 65535, or none")
	}
	if !validHost(u) {
		return nil, badURL("url must have a host that is a domain name in ASCII or an IP address in its usual form")
	}
	return u, nil
}

func validPort(u *url.URL) bool {
	if strings.HasSuffix(u.Host, ":") {
		return false
	}
	if u.Port() == "" {
		return true
	}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil && n > 0
}

// validHost accepts an IPv6 address in brackets, an IPv4 address of four decimal numbers, and domain
// names of ASCII letters, digits, - and _. It refuses everything else that a resolver might read as an
// address: programs differ in how they read 127.1, 2130706433, 0x7f.1 and 0177.0.0.1, and the non-ASCII
// characters that normalize to digits and dots.
func validHost(u *url.URL) bool {
	host := u.Hostname()
	if _, err := netip.ParseAddr(host); err == nil {
		return true // url.Parse has checked the brackets
	}
	host = strings.TrimSuffix(host, ".")
	if len(host) > 253 {
		return false
	}
	labels := strings.Split(host, ".")
	for _, label := range labels {
		if !validLabel(label) {
			return false
		}
	}
	return !isNumber(labels[len(labels)-1])
}

func validLabel(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// isNumber reports whether browsers would parse a host with this last label as an IPv4 address (URL
// Standard, "ends in a number").
func isNumber(label string) bool {
	digits, base := label, "0123456789"
	if len(label) >= 2 && label[0] == '0' && (label[1] == 'x' || label[1] == 'X') {
		digits, base = label[2:], "0123456789abcdefABCDEF"
	}
	return strings.Trim(digits, base) == ""
}

// literalAddresses returns the addresses that a host names without a lookup.
func literalAddresses(host string) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	return nil
}
