//go:build linux

package main

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A server that resets the connection before it has read the whole request, and one that does not answer. Planted
// faults: the error as net/http returns it; the client's own close recorded.
func TestClients_ReportWhatEndedAConnection(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		serve   func(net.Conn)
		timeout time.Duration
		want    string
	}{
		"hangs up":        {func(conn net.Conn) { _, _ = conn.Read(make([]byte, 10)); reset(conn) }, 20 * time.Second, "connection reset by peer"},
		"does not answer": {func(net.Conn) {}, time.Second, "not ended by the peer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				if conn, err := listener.Accept(); err == nil {
					defer conn.Close()
					c.serve(conn)
					<-t.Context().Done()
				}
			}()
			h, err := newHistory(filepath.Join(t.TempDir(), "history"))
			if err != nil {
				t.Fatal(err)
			}
			clients := newClients(h, []string{listener.Addr().String()})
			defer clients.close()
			a := clients.do(context.Background(), request{
				kind: kindUpload, w: &workspace{}, method: "POST", path: "/", body: bytes.Repeat([]byte("x"), 32<<20), timeout: c.timeout,
			})
			if _, state, _ := strings.Cut(a.Error, "(connection from 127.0.0.1:"); !strings.Contains(state, c.want) || !strings.Contains(state, ", new; ") {
				t.Errorf("%s, want %q", a.Error, c.want)
			}
		})
	}
}
