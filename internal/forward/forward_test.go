package forward

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline bounds every wait of a test.
const deadline = 10 * time.Second

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// stream hides the concrete type of a reader, as a server's request body does.
type stream struct{ io.Reader }

// wantErr checks that err is of exactly these kinds and of no other.
func wantErr(t *testing.T, err error, kinds ...error) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %v", kinds)
	}
	for _, kind := range []error{
		ErrUnreachable, ErrDenied, ErrAnswerTooLarge, ErrBadURL,
		context.Canceled, context.DeadlineExceeded, errBody, io.ErrUnexpectedEOF,
	} {
		want := false
		for _, k := range kinds {
			want = want || k == kind
		}
		if errors.Is(err, kind) != want {
			t.Errorf("errors.Is(%q, %q) = %v", err, kind, !want)
		}
	}
}

// receive waits for a value, as long as a test may.
func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(deadline):
		t.Fatal("nothing received before the deadline")
		panic("unreachable")
	}
}

// counted is a receiver that counts its connections and requests.
type counted struct {
	*httptest.Server
	connections, requests atomic.Int32
}

func newCounted(t *testing.T, h http.HandlerFunc) *counted {
	t.Helper()
	c := &counted{}
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.requests.Add(1)
		h(w, r)
	}))
	c.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			c.connections.Add(1)
		}
	}
	c.Start()
	t.Cleanup(c.Close)
	return c
}

func (c *counted) port() string {
	_, port, _ := net.SplitHostPort(c.Listener.Addr().String())
	return port
}

// wantUntouched checks that there was no connection so far. Connections are accepted in order, so any
// earlier one is counted before the probe's.
func (c *counted) wantUntouched(t *testing.T) {
	t.Helper()
	if _, err := New(Options{AllowCIDRs: loopback}).Post(t.Context(), Request{URL: c.URL}); err != nil {
		t.Fatalf("probe: %v", err)
	}
	if n := c.connections.Load(); n != 1 {
		t.Errorf("the receiver saw %d connections before the probe, want 0", n-1)
	}
}

func ok(http.ResponseWriter, *http.Request) {}

func TestPost_SendsBodyTypeAndLengthUnchangedAndNoOtherHeader(t *testing.T) {
	t.Parallel()
	big := make([]byte, 3<<20+17)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(big)
	const formType = `multipart/form-data; boundary="a b;c"; Charset=UTF-8`
	tests := []struct {
		name    string
		body    []byte
		length  int64
		chunked bool
	}{
		{"known length", big, int64(len(big)), false},
		{"unknown length", big, -1, true},
		{"one byte", big[:1], 1, false},
		{"empty", nil, 0, false},
		{"empty of unknown length", nil, -1, true},
		{"longer than announced", big, 1000, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			type seen struct {
				req  *http.Request
				body []byte
			}
			got := make(chan seen, 1)
			srv := newCounted(t, func(w http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				if err != nil {
					t.Errorf("receiver: %v", err)
				}
				got <- seen{r, b}
				w.Header().Set("Content-Type", "application/x-answer; v=1")
				w.WriteHeader(http.StatusTeapot)
				_, _ = w.Write([]byte("short and stout"))
			})
			src := bytes.NewReader(tt.body)
			answer, err := New(Options{AllowCIDRs: loopback}).Post(t.Context(), Request{
				URL: srv.URL + "/base/x?y=1", Secret: "s3cret", ContentType: formType,
				ContentLength: tt.length, Body: stream{src}, RequestID: "req-1",
			})
			if err != nil {
				t.Fatal(err)
			}
			want := &Answer{http.StatusTeapot, "application/x-answer; v=1", []byte("short and stout")}
			if !reflect.DeepEqual(answer, want) {
				t.Errorf("answer %+v, want %+v", answer, want)
			}

			s := receive(t, got)
			wantBody := tt.body
			if tt.length >= 0 {
				wantBody = tt.body[:tt.length]
			}
			if !bytes.Equal(s.body, wantBody) {
				t.Errorf("body arrived changed: %d bytes, want %d", len(s.body), len(wantBody))
			}
			if read := len(tt.body) - src.Len(); read != len(wantBody) {
				t.Errorf("%d bytes were read of the body, want %d", read, len(wantBody))
			}
			if s.req.ContentLength != tt.length {
				t.Errorf("Content-Length %d, want %d", s.req.ContentLength, tt.length)
			}
			if chunked := reflect.DeepEqual(s.req.TransferEncoding, []string{"chunked"}); chunked != tt.chunked {
				t.Errorf("Transfer-Encoding %v, want chunked %v", s.req.TransferEncoding, tt.chunked)
			}
			if s.req.Method != "POST" || s.req.RequestURI != "/base/x?y=1" || s.req.Proto != "HTTP/1.1" {
				t.Errorf("request line %s %s %s", s.req.Method, s.req.RequestURI, s.req.Proto)
			}
			s.req.Header.Del("Content-Length")
			wantHeader := http.Header{
				"Authorization": {"Bearer s3cret"}, "Content-Type": {formType}, "X-Request-Id": {"req-1"},
				"User-Agent": {"molecule-platform"}, "Connection": {"close"},
			}
			if !reflect.DeepEqual(s.req.Header, wantHeader) {
				t.Errorf("header %v, want %v", s.req.Header, wantHeader)
			}
		})
	}
}

func TestPost_OmitsEmptyHeaders(t *testing.T) {
	t.Parallel()
	got := make(chan http.Header, 1)
	srv := newCounted(t, func(_ http.ResponseWriter, r *http.Request) { got <- r.Header })
	answer, err := New(Options{AllowCIDRs: loopback}).Post(t.Context(), Request{URL: srv.URL})
	if err != nil || answer.Status != 200 || answer.ContentType != "" || len(answer.Body) != 0 {
		t.Fatalf("%+v, %v", answer, err)
	}
	h := receive(t, got)
	for _, name := range []string{"Authorization", "Content-Type", "X-Request-Id", "Accept-Encoding"} {
		if v, present := h[name]; present {
			t.Errorf("%s: %q was sent", name, v)
		}
	}
}

func TestPost_RedirectIsTheAnswer(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		target := newCounted(t, ok)
		srv := newCounted(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, target.URL, status)
		})
		answer, err := New(Options{AllowCIDRs: loopback}).Post(t.Context(), Request{
			URL: srv.URL, Secret: "s3cret", Body: strings.NewReader("x"), ContentLength: 1,
		})
		if err != nil || answer.Status != status {
			t.Fatalf("%+v, %v; want status %d", answer, err, status)
		}
		target.wantUntouched(t)
	}
}

func TestPost_LoopbackIsDeniedUnlessOpened(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0", "[::]"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			srv := newCounted(t, ok)
			_, err := New(Options{}).Post(t.Context(), Request{URL: "http://" + host + ":" + srv.port(), Secret: "s3cret"})
			wantErr(t, err, ErrUnreachable, ErrDenied)
			srv.wantUntouched(t)
		})
	}
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		t.Run(host+" opened", func(t *testing.T) {
			t.Parallel()
			srv := newCounted(t, ok)
			answer, err := New(Options{AllowCIDRs: loopback}).Post(t.Context(), Request{URL: "http://" + host + ":" + srv.port()})
			if err != nil || answer.Status != 200 {
				t.Fatalf("%+v, %v", answer, err)
			}
		})
	}
}

func TestPost_UnusableURLIsUnreachable(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{"", "ftp://127.0.0.1", "http://u:p@127.0.0.1", "http://2130706433", "http://0x7f.1", "http://h#f"} {
		_, err := New(Options{AllowCIDRs: loopback}).Post(t.Context(), Request{URL: raw})
		wantErr(t, err, ErrUnreachable, ErrBadURL)
	}
}

func TestPost_IgnoresTheEnvironmentsProxy(t *testing.T) {
	proxy := newCounted(t, ok)
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} {
		t.Setenv(name, proxy.URL)
	}
	t.Setenv("NO_PROXY", "")
	t.Setenv("no_proxy", "")
	srv := newCounted(t, ok)
	// A name, because a proxy from the environment is never used for a literal loopback address.
	dns := newDNS(t, func(int) []string { return []string{"127.0.0.1"} })
	answer, err := New(Options{AllowCIDRs: loopback, Resolver: dns.resolver()}).
		Post(t.Context(), Request{URL: "http://receiver.test:" + srv.port()})
	if err != nil || answer.Status != 200 || srv.requests.Load() != 1 {
		t.Fatalf("%+v, %v; the receiver saw %d requests", answer, err, srv.requests.Load())
	}
	proxy.wantUntouched(t)
}

func TestPost_VerifiesTheCertificate(t *testing.T) {
	t.Parallel()
	protos := make(chan string, 1)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { protos <- r.Proto }))
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()

	c := New(Options{AllowCIDRs: loopback})
	_, err := c.Post(t.Context(), Request{URL: srv.URL, Secret: "s3cret"})
	wantErr(t, err, ErrUnreachable)
	if len(protos) != 0 {
		t.Error("a receiver with an unknown certificate got the request")
	}

	c = New(Options{AllowCIDRs: loopback})
	c.transport.TLSClientConfig.RootCAs = x509.NewCertPool()
	c.transport.TLSClientConfig.RootCAs.AddCert(srv.Certificate())
	if _, err := c.Post(t.Context(), Request{URL: srv.URL}); err != nil {
		t.Fatal(err)
	}
	if proto := receive(t, protos); proto != "HTTP/1.1" {
		t.Errorf("spoke %s, want HTTP/1.1", proto)
	}
}

func TestPost_ErrorsNeverShowTheSecret(t *testing.T) {
	t.Parallel()
	_, err := New(Options{AllowCIDRs: loopback}).Post(t.Context(), Request{URL: "http://127.0.0.1:1", Secret: "s3cret\n"})
	if err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("error %v", err)
	}
}
