package forward

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// public is an address that the guard allows. Nothing is ever sent to it: the tests stop the dial in
// Client.onAllowed, before the connect.
var public = netip.MustParseAddr("1.1.1.1")

// dnsServer answers every A query on a loopback socket, and has no AAAA records.
type dnsServer struct {
	addr   string
	asked  atomic.Int32
	answer func(n int) []string // addresses for the nth query, from 1
}

func newDNS(t *testing.T, answer func(n int) []string) *dnsServer {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dnsServer{addr: pc.LocalAddr().String(), answer: answer}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply := s.reply(buf[:n]); reply != nil {
				_, _ = pc.WriteTo(reply, from)
			}
		}
	}()
	t.Cleanup(func() { _ = pc.Close(); <-done })
	return s
}

func (s *dnsServer) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", s.addr)
	}}
}

// reply builds the answer to a query with one question (RFC 1035, section 4.1).
func (s *dnsServer) reply(query []byte) []byte {
	end := 12
	for end < len(query) && query[end] != 0 {
		end += int(query[end]) + 1
	}
	end += 5 // the root label, type, class
	if end > len(query) {
		return nil
	}
	var addrs []string
	if kind := binary.BigEndian.Uint16(query[end-4:]); kind == 1 { // A
		addrs = s.answer(int(s.asked.Add(1)))
	}
	out := append([]byte{}, query[:2]...)
	out = append(out, 0x81, 0x80, 0, 1, 0, byte(len(addrs)), 0, 0, 0, 0)
	out = append(out, query[12:end]...)
	for _, a := range addrs {
		ip := netip.MustParseAddr(a).As4()
		// The question's name, A, IN, no time to live, four bytes.
		out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		out = append(out, ip[:]...)
	}
	return out
}

// stopAll makes the client report the addresses that its guard allows instead of connecting to them. It
// proves first, on loopback, that the dialer calls the guard and so the hook: if it did not, the tests
// below would connect to a real host.
func stopAll(t *testing.T, c *Client) (passed chan netip.Addr) {
	t.Helper()
	passed = make(chan netip.Addr, 10)
	c.onAllowed = func(ap netip.AddrPort) error {
		passed <- ap.Addr()
		return errors.New("stopped by the test")
	}
	if _, err := c.Post(t.Context(), Request{URL: "http://127.0.0.1:1"}); !errors.Is(err, ErrDenied) {
		t.Fatalf("loopback: %v, want ErrDenied; nothing else may be dialled then", err)
	}
	return passed
}

func TestPost_DNSRebindingToLoopbackIsDenied(t *testing.T) {
	t.Parallel()
	srv := newCounted(t, ok)
	dns := newDNS(t, func(n int) []string {
		if n == 1 {
			return []string{public.String()}
		}
		return []string{"127.0.0.1"}
	})
	c := New(Options{Resolver: dns.resolver()})
	passed := stopAll(t, c)
	r := Request{URL: "http://rebind.test:" + srv.port(), Secret: "s3cret"}
	if err := c.CheckURL(r.URL); err != nil {
		t.Fatalf("the name cannot be registered: %v", err)
	}

	_, err := c.Post(t.Context(), r)
	wantErr(t, err, ErrUnreachable) // by the hook, not the guard
	if a := receive(t, passed); a != public {
		t.Fatalf("the first dial went to %s, want %s", a, public)
	}

	_, err = c.Post(t.Context(), r)
	wantErr(t, err, ErrUnreachable, ErrDenied)
	if len(passed) != 0 {
		t.Errorf("the guard allowed %s", <-passed)
	}
	if n := dns.asked.Load(); n != 2 {
		t.Errorf("the name was looked up %d times, want once for each Post", n)
	}
	srv.wantUntouched(t)
}

func TestPost_EachAddressOfANameIsChecked(t *testing.T) {
	t.Parallel()
	srv := newCounted(t, ok)
	dns := newDNS(t, func(int) []string { return []string{public.String(), "127.0.0.1", "10.0.0.1"} })
	c := New(Options{Resolver: dns.resolver()})
	passed := stopAll(t, c)
	_, err := c.Post(t.Context(), Request{URL: "http://mixed.test:" + srv.port()})
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("error %v, want ErrUnreachable", err)
	}
	if a := receive(t, passed); a != public || len(passed) != 0 {
		t.Errorf("allowed: %s and %d more, want only %s", a, len(passed), public)
	}
	srv.wantUntouched(t)
}

func TestPost_NameWithoutAddressIsUnreachable(t *testing.T) {
	t.Parallel()
	dns := newDNS(t, func(int) []string { return nil })
	_, err := New(Options{Resolver: dns.resolver()}).Post(t.Context(), Request{URL: "http://nobody.test"})
	wantErr(t, err, ErrUnreachable)
}

func TestPost_LookupTimeoutIsUnreachable(t *testing.T) {
	t.Parallel()
	silent := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	_, err := New(Options{Resolver: silent, DialTimeout: 50 * time.Millisecond}).
		Post(impatient(t), Request{URL: "http://silent.test"})
	wantErr(t, err, ErrUnreachable)
}
