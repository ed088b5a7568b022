package handlers

import (
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/molecule-ai/platform/internal/wsauth"
)

// A HostCheck says which requests may use an open route of a platform that listens on loopback. The browser of this
// machine reaches the platform for every web site that its user visits: a site can send simple requests to it, and a site
// whose name is made to resolve to 127.0.0.1 (DNS rebinding) can read the answers as well. Both show in the headers Origin
// and Host, which a page cannot change. What carries a token needs no check, because a site has none.
type HostCheck struct {
	Host   func(host string) bool   // whether a host name, without a port, is this platform
	Origin func(origin string) bool // whether other origins may call, as CORS_ORIGINS says
}

// admit refuses a request without a token that came by another name, or from a page of another site.
func (h *HostCheck) admit(c *gin.Context) error {
	if h == nil || wsauth.Bearer(c.GetHeader("Authorization")) != "" {
		return nil
	}
	if !h.Host(hostname(c.Request.Host)) {
		return refuse(http.StatusForbidden, "host_not_allowed",
			"registering without a token needs a Host of localhost or a loopback address; set PUBLIC_URL if the platform has another name")
	}
	for _, origin := range c.Request.Header.Values("Origin") {
		u, err := url.Parse(origin)
		if (err != nil || u.Host == "" || !h.Host(u.Hostname())) && !h.Origin(origin) {
			return OriginNotAllowed()
		}
	}
	return nil
}

// hostname returns a Host header without its port and brackets.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}
