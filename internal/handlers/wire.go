package handlers

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/gin-gonic/gin"
)

// ForwardedFor makes gin read X-Forwarded-For as proxies write it: some write an address with its port, which gin
// does not parse. All clients of such a proxy would have its address, and share one rate limit.
func ForwardedFor() gin.HandlerFunc {
	return func(c *gin.Context) {
		lines := c.Request.Header.Values("X-Forwarded-For")
		if len(lines) == 0 {
			return
		}
		entries := strings.Split(strings.Join(lines, ","), ",")
		for i, entry := range entries {
			entries[i] = withoutPort(strings.TrimSpace(entry))
		}
		c.Request.Header.Set("X-Forwarded-For", strings.Join(entries, ", "))
	}
}

// withoutPort returns the address of an entry such as 192.0.2.1:4711 or [2001:db8::1], and any other entry
// unchanged.
func withoutPort(entry string) string {
	if withPort, err := netip.ParseAddrPort(entry); err == nil {
		return withPort.Addr().String()
	}
	if inner, ok := strings.CutPrefix(entry, "["); ok {
		return strings.TrimSuffix(inner, "]")
	}
	return entry
}

// SafeHeaders sets the headers that every answer has unless its handler sets others: answers may hold tokens
// and messages, so no cache keeps them and no browser guesses another type.
func SafeHeaders() gin.HandlerFunc {
	return func(c *gin.Context) { setSafeHeaders(c) }
}

func setSafeHeaders(c *gin.Context) {
	c.Header("Cache-Control", "no-store")
	c.Header("X-Content-Type-Options", "nosniff")
}

// Unambiguous refuses requests that the platform and its client could understand differently: a query string
// of which net/url drops a part, a body in an encoding that no handler decodes, and two Authorization headers.
func Unambiguous() gin.HandlerFunc {
	return func(c *gin.Context) {
		if err := unambiguous(c.Request); err != nil {
			Render(c, err)
			c.Abort()
		}
	}
}

func unambiguous(r *http.Request) error {
	if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
		return refuse(http.StatusBadRequest, "invalid_query",
			"the query string cannot be parsed; escape %, ; and other reserved characters").because(err)
	}
	if len(r.Header.Values("Authorization")) > 1 {
		return refuse(http.StatusBadRequest, "ambiguous_authorization", "send one Authorization header")
	}
	if r.ContentLength == 0 {
		return nil
	}
	for coding := range strings.SplitSeq(strings.Join(r.Header.Values("Content-Encoding"), ","), ",") {
		if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "identity") {
			return refuse(http.StatusUnsupportedMediaType, "unsupported_encoding", "send the body without a Content-Encoding")
		}
	}
	return nil
}
