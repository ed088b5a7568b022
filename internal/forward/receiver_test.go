package forward

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// errBody is the error of a failing body.
var errBody = errors.New("the client went away")

// zeros is a body without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// startRaw serves each connection with script, which gets the connection and a channel that is closed
// when the test ends. It returns the receiver's URL.
func startRaw(t *testing.T, script func(nc net.Conn, done <-chan struct{})) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				script(nc, done)
				_ = nc.Close()
			})
		}
	})
	t.Cleanup(func() { close(done); _ = l.Close(); running.Wait() })
	return "http://" + l.Addr().String()
}

// readHeader reads the request's header. It does not wait for bytes after it.
func readHeader(nc net.Conn) {
	r := bufio.NewReaderSize(nc, 16)
	for {
		line, err := r.ReadString('\n')
		if err != nil || line == "\r\n" {
			return
		}
	}
}

// impatient returns a context that ends long before the defaults of Options, and after every timeout
// that a test sets. A timeout that does not work then fails the test with context.DeadlineExceeded,
// which is not ErrUnreachable.
func impatient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// drip writes s a byte at a time, forever if it is to repeat.
func drip(nc net.Conn, s string, repeat bool) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		for i := range len(s) {
			if _, err := nc.Write([]byte{s[i]}); err != nil {
				return
			}
			<-tick.C
		}
		if !repeat {
			return
		}
	}
}

func TestPost_MisbehavingReceiverIsBoundedByATimeout(t *testing.T) {
	t.Parallel()
	const head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
	tests := []struct {
		name   string
		script func(nc net.Conn, done <-chan struct{})
		want   []error
	}{
		{"hangs up at once", func(net.Conn, <-chan struct{}) {}, []error{ErrUnreachable}},
		{"hangs up after the request", func(nc net.Conn, _ <-chan struct{}) { readHeader(nc) }, []error{ErrUnreachable}},
		{"never answers", func(nc net.Conn, done <-chan struct{}) { readHeader(nc); <-done }, []error{ErrUnreachable}},
		{"drips the header", func(nc net.Conn, _ <-chan struct{}) {
			readHeader(nc)
			drip(nc, head+"X-Long: "+strings.Repeat("x", 1<<20), false)
		}, []error{ErrUnreachable}},
		{"drips the body", func(nc net.Conn, _ <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, head+"\r\n")
			drip(nc, "x", true)
		}, []error{ErrUnreachable}},
		{"drips chunks", func(nc net.Conn, _ <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, head+"Transfer-Encoding: chunked\r\n\r\n")
			drip(nc, "1\r\nx\r\n", true)
		}, []error{ErrUnreachable}},
		{"stops amid the body", func(nc net.Conn, done <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, head+"Content-Length: 10\r\n\r\nhalf")
			<-done
		}, []error{ErrUnreachable}},
		{"cuts the header", func(nc net.Conn, _ <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, head[:20])
		}, []error{ErrUnreachable}},
		{"cuts the body", func(nc net.Conn, _ <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, head+"Content-Length: 10\r\n\r\nhalf")
		}, []error{ErrUnreachable}},
		{"cuts the chunks", func(nc net.Conn, _ <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, head+"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
		}, []error{ErrUnreachable}},
		{"never ends the body", func(nc net.Conn, _ <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, head+"\r\n")
			_, _ = io.Copy(nc, zeros{})
		}, []error{ErrUnreachable, ErrAnswerTooLarge}},
		{"announces too large a body", func(nc net.Conn, done <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, head+"Content-Length: 1025\r\n\r\n")
			<-done
		}, []error{ErrUnreachable, ErrAnswerTooLarge}},
		{"sends too large a header", func(nc net.Conn, _ <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, head+"X-Long: "+strings.Repeat("x", 2*maxHeaderBytes)+"\r\nContent-Length: 0\r\n\r\n")
		}, []error{ErrUnreachable}},
		{"does not speak HTTP", func(nc net.Conn, _ <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, "220 mail.example ESMTP\r\n")
		}, []error{ErrUnreachable}},
		{"switches protocols", func(nc net.Conn, _ <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		}, []error{ErrUnreachable}},
		{"answers with no status", func(nc net.Conn, _ <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, "HTTP/1.1 000 Nothing\r\nContent-Length: 0\r\n\r\n")
		}, []error{ErrUnreachable}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := New(Options{AllowCIDRs: loopback, MaxAnswerBytes: 1024})
			timeout := 150 * time.Millisecond
			if len(tt.want) > 1 { // a specific error must come before any timeout
				timeout = 3 * time.Second
			}
			_, err := c.Post(impatient(t), Request{URL: startRaw(t, tt.script), Timeout: timeout})
			wantErr(t, err, tt.want...)
		})
	}
}

func TestPost_StalledReceiverEndsWithTheStallTimeout(t *testing.T) {
	t.Parallel()
	for _, length := range []int64{-1, 1 << 40} {
		url := startRaw(t, func(nc net.Conn, done <-chan struct{}) { readHeader(nc); <-done })
		c := New(Options{AllowCIDRs: loopback, StallTimeout: 150 * time.Millisecond})
		_, err := c.Post(impatient(t), Request{URL: url, Body: zeros{}, ContentLength: length})
		wantErr(t, err, ErrUnreachable)
	}
}

func TestPost_StalledTLSHandshakeEndsWithTheDialTimeout(t *testing.T) {
	t.Parallel()
	url := startRaw(t, func(_ net.Conn, done <-chan struct{}) { <-done })
	c := New(Options{AllowCIDRs: loopback, DialTimeout: 100 * time.Millisecond})
	_, err := c.Post(impatient(t), Request{URL: strings.Replace(url, "http", "https", 1)})
	wantErr(t, err, ErrUnreachable)
}

func TestPost_ClosedPortIsUnreachable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	_, err = New(Options{AllowCIDRs: loopback}).Post(impatient(t), Request{URL: "http://" + l.Addr().String()})
	wantErr(t, err, ErrUnreachable)
}

func TestPost_AnswerOfExactlyTheLimitPasses(t *testing.T) {
	t.Parallel()
	for _, chunked := range []bool{false, true} {
		for size, want := range map[int][]error{1023: nil, 1024: nil, 1025: {ErrUnreachable, ErrAnswerTooLarge}} {
			srv := newCounted(t, func(w http.ResponseWriter, _ *http.Request) {
				if chunked {
					_ = http.NewResponseController(w).Flush()
				}
				_, _ = w.Write(bytes.Repeat([]byte("x"), size))
			})
			answer, err := New(Options{AllowCIDRs: loopback, MaxAnswerBytes: 1024}).Post(impatient(t), Request{URL: srv.URL})
			if want != nil {
				wantErr(t, err, want...)
			} else if err != nil || len(answer.Body) != size {
				t.Errorf("%d bytes, chunked %v: %v", size, chunked, err)
			}
		}
	}
}

func TestPost_TimeoutStartsAfterTheBody(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	srv := newCounted(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	slow := time.NewTimer(timeout + timeout/2)
	defer slow.Stop()
	late := readerFunc(func(p []byte) (int, error) { <-slow.C; return copy(p, "x"), io.EOF })
	answer, err := New(Options{AllowCIDRs: loopback}).
		Post(ctx, Request{URL: srv.URL, Body: late, ContentLength: -1, Timeout: timeout})
	if err != nil || answer.Status != 200 {
		t.Fatalf("%+v, %v", answer, err)
	}
}

// readerFunc is a Read.
type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A receiver that refuses early closes with the body unread, which resets the connection. The answer
// must not be lost. The counter is not atomic, so that the race detector reports a read of Body after
// Post has returned.
func TestPost_EarlyAnswerIsReturned(t *testing.T) {
	t.Parallel()
	const answer413 = "HTTP/1.1 413 Request Entity Too Large\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
	for name, script := range map[string]func(net.Conn, <-chan struct{}){
		"and hangs up": func(nc net.Conn, _ <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, answer413)
		},
		"and stops reading": func(nc net.Conn, done <-chan struct{}) {
			readHeader(nc)
			_, _ = io.WriteString(nc, answer413)
			<-done
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := startRaw(t, script)
			c := New(Options{AllowCIDRs: loopback})
			for i := range 100 {
				reads := 0
				endless := readerFunc(func(p []byte) (int, error) { reads++; return len(p), nil })
				answer, err := c.Post(impatient(t), Request{URL: url, Body: endless, ContentLength: []int64{-1, 1 << 40}[i%2]})
				if err != nil || answer.Status != 413 || string(answer.Body) != "{}" || answer.ContentType != "application/json" {
					t.Fatalf("round %d: %+v, %v", i, answer, err)
				}
				reads++
			}
		})
	}
}

func TestPost_EarlyAnswerThatNeverEndsTimesOut(t *testing.T) {
	t.Parallel()
	url := startRaw(t, func(nc net.Conn, _ <-chan struct{}) {
		readHeader(nc)
		_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
		_, _ = io.Copy(io.Discard, nc)
	})
	_, err := New(Options{AllowCIDRs: loopback}).
		Post(impatient(t), Request{URL: url, Body: zeros{}, ContentLength: -1, Timeout: 100 * time.Millisecond})
	wantErr(t, err, ErrUnreachable)
}

func TestPost_BodyErrorIsNotUnreachable(t *testing.T) {
	t.Parallel()
	const size = 100_000
	part := func(end error) io.Reader {
		sent := bytes.NewReader(make([]byte, size/2))
		return readerFunc(func(p []byte) (int, error) {
			if n, err := sent.Read(p); err == nil {
				return n, nil
			}
			return 0, end
		})
	}
	tests := []struct {
		name   string
		body   io.Reader
		length int64
		want   error
	}{
		{"known length", part(errBody), size, errBody},
		{"unknown length", part(errBody), -1, errBody},
		{"wrapped", part(fmt.Errorf("read: %w", errBody)), -1, errBody},
		{"shorter than announced", part(io.EOF), size, io.ErrUnexpectedEOF},
		{"at once", readerFunc(func([]byte) (int, error) { return 0, errBody }), size, errBody},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			seen := make(chan error, 1)
			srv := newCounted(t, func(_ http.ResponseWriter, r *http.Request) {
				_, err := io.Copy(io.Discard, r.Body)
				seen <- err
			})
			_, err := New(Options{AllowCIDRs: loopback}).Post(impatient(t), Request{URL: srv.URL, Body: tt.body, ContentLength: tt.length})
			wantErr(t, err, tt.want)
			if receive(t, seen) == nil {
				t.Error("the receiver accepted a truncated request as complete")
			}
		})
	}
}

func TestPost_CancelledContextIsReturned(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{}, 2)
	url := startRaw(t, func(nc net.Conn, _ <-chan struct{}) {
		readHeader(nc)
		arrived <- struct{}{}
		_, _ = io.Copy(io.Discard, nc)
	})
	c := New(Options{AllowCIDRs: loopback})

	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := c.Post(ctx, Request{URL: url})
		failed <- err
	}()
	receive(t, arrived)
	cancel()
	wantErr(t, receive(t, failed), context.Canceled)

	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.Post(ctx, Request{URL: url, Body: zeros{}, ContentLength: -1})
	wantErr(t, err, context.DeadlineExceeded)
}

func TestRequestBody_IsNotReadOnceDetached(t *testing.T) {
	t.Parallel()
	b := &requestBody{r: readerFunc(func([]byte) (int, error) { t.Error("read after detach"); return 0, errBody })}
	if err := b.detach(); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errDetached) {
		t.Errorf("Read after detach = %d, %v", n, err)
	}
}
