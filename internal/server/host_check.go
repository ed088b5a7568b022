package server

import (
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/handlers"
)

// hostCheck is for a platform that listens on loopback; on other addresses the names of the platform are not known, and
// it returns nil.
func (s *Server) hostCheck() *handlers.HostCheck {
	if tcp, ok := s.listener.Addr().(*net.TCPAddr); !ok || !tcp.IP.IsLoopback() {
		return nil
	}
	public := ""
	if u, err := url.Parse(s.config.PublicURL); err == nil {
		public = u.Hostname()
	}
	return &handlers.HostCheck{
		Host: func(host string) bool {
			return config.LoopbackHost(host) || public != "" && strings.EqualFold(host, public)
		},
		Origin: func(origin string) bool {
			return slices.Contains(s.config.CORSOrigins, "*") || slices.Contains(s.config.CORSOrigins, origin)
		},
	}
}
