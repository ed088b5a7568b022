package forward

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// maxURLBytes is what every browser and proxy accepts.
const maxURLBytes = 2048

// ingestPath is where a workspace takes uploads, below its url.
const ingestPath = "/internal/chat/uploads/ingest"

// urlError is a sentence for the person who registered the url; it matches its kind.
type urlError struct {
	text string
	kind error
}

func (e *urlError) Error() string { return e.text }
func (e *urlError) Unwrap() error { return e.kind }

func badURL(text string) error { return &urlError{text, ErrBadURL} }

// CheckURL says whether raw can be registered as a workspace's address: an
// absolute http or https URL of at most 2048 bytes with a host, no user name, no
// password and no fragment, and not plainly an address that the guard denies.
// Names are not looked up, since the answer may be another one tomorrow: Post
// checks what it dials. Only localhost and names below it are taken for
// 127.0.0.1 and ::1 (RFC 6761), and pass if either is allowed.
//
// The error matches ErrBadURL or ErrDenied, and its text is fit to show.
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

// IngestURL returns where the workspace at base takes uploads:
// base/internal/chat/uploads/ingest. Base's path and query are kept, slashes at
// the path's end are not doubled. The error matches ErrBadURL.
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

// parseURL checks all that can be said of a URL without knowing the guard.
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

// validHost accepts an IPv6 address in brackets, an IPv4 address as four decimal
// numbers, and domain names of ASCII letters, digits, - and _. What else a
// resolver might take for an address is refused: 127.1, 2130706433, 0x7f.1 and
// 0177.0.0.1 are read differently by different programs, and so are the
// non-ASCII characters that turn into digits and dots.
func validHost(u *url.URL) bool {
	host := u.Hostname()
	if _, err := netip.ParseAddr(host); err == nil {
		return true // url.Parse has seen to the brackets
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

// isNumber is how browsers tell a name from an attempt at an IPv4 address: by
// the last label (URL Standard, "ends in a number").
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
