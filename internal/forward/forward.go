// Package forward is the HTTP client with which the platform calls push workspaces: a POST to a URL
// that the workspace itself supplied.
//
// That is server-side request forgery by design. The client therefore promises:
//   - It connects only to globally routable addresses and to the networks of Options.AllowCIDRs. Every
//     dial checks the address that is really dialled, so DNS rebinding does not get past it.
//   - It speaks HTTP/1.1 over http and https, with TLS verification. It uses no proxy, whatever the
//     environment says, and follows no redirect.
//   - It sends the given body, Content-Type and length, a bearer secret and a request id. No other
//     header of the caller can be sent.
//   - A receiver that is slow, stalls, never ends or answers too much costs at most a timeout and
//     MaxAnswerBytes of memory.
//
// It does not retry, because the body is a stream that can be read once. It does not interpret the
// answer: any final status is an answer. It does not bound the time that reading the caller's body
// takes; the caller does. It does not recognize a network-specific NAT64 prefix (RFC 6052), which looks
// like any other global address.
package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// The kinds of failure; test for them with errors.Is.
var (
	// ErrUnreachable: the receiver gave no usable answer. It covers every failure that is not the
	// caller's: name resolution, dial, TLS, the guard, a stall, a timeout, and an answer that is
	// truncated or too large.
	ErrUnreachable = errors.New("receiver unreachable")
	// ErrDenied: the guard does not allow the address.
	ErrDenied = errors.New("address denied by the outbound guard")
	// ErrAnswerTooLarge: the answer has more than MaxAnswerBytes.
	ErrAnswerTooLarge = errors.New("answer too large")
	// ErrBadURL: Post can never call this URL.
	ErrBadURL = errors.New("unusable url")
)

// Defaults for zero fields of Options and Request. A write is at most 32 KiB, so the default
// StallTimeout requires the receiver to read at least about 1 KiB/s.
const (
	DefaultDialTimeout    = 10 * time.Second
	DefaultStallTimeout   = 30 * time.Second
	DefaultAnswerTimeout  = 60 * time.Second
	DefaultMaxAnswerBytes = 4 << 20
)

// maxHeaderBytes bounds the answer's status line and header.
const maxHeaderBytes = 64 << 10

// errAnswerTimeout is the cause when the answer timer cancels the request.
var errAnswerTimeout = errors.New("no complete answer in time")

// Options configure a Client. The zero value is usable and denies all addresses that are not globally
// routable.
type Options struct {
	// AllowCIDRs are networks that may be called although the guard denies them by default. An IPv4
	// network also covers the IPv4-mapped form of its addresses.
	AllowCIDRs []netip.Prefix
	// Resolver looks names up; nil is the system's.
	Resolver *net.Resolver
	// DialTimeout bounds name resolution and connect together, and then the TLS handshake. Zero is
	// DefaultDialTimeout.
	DialTimeout time.Duration
	// StallTimeout bounds each write of at most 32 KiB to the receiver. Zero is
	// DefaultStallTimeout.
	StallTimeout time.Duration
	// MaxAnswerBytes bounds the answer's body. Zero is DefaultMaxAnswerBytes.
	MaxAnswerBytes int64
}

// Client posts to workspaces. It is safe for concurrent use. It keeps no connections, so it needs no
// Close.
type Client struct {
	guard     guard
	transport *http.Transport
	maxAnswer int64

	// onAllowed is set by tests only. It is called with each address that the guard has allowed, before
	// the connect; an error stops the dial.
	onAllowed func(netip.AddrPort) error
}

// New returns a Client.
func New(o Options) *Client {
	if o.DialTimeout <= 0 {
		o.DialTimeout = DefaultDialTimeout
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = DefaultStallTimeout
	}
	if o.MaxAnswerBytes <= 0 {
		o.MaxAnswerBytes = DefaultMaxAnswerBytes
	}
	c := &Client{guard: newGuard(o.AllowCIDRs), maxAnswer: o.MaxAnswerBytes}
	dialer := &net.Dialer{
		Timeout:        o.DialTimeout,
		Resolver:       o.Resolver,
		ControlContext: c.control,
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	c.transport = &http.Transport{
		Proxy: nil, // a proxy would resolve and dial without the guard
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			nc, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return newConn(nc, o.StallTimeout), nil
		},
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: o.DialTimeout,
		Protocols:           protocols,
		// The receiver may have closed an idle connection. The client would notice only while it sends
		// the body, and a stream cannot be sent again. A new connection for each request also means that
		// the guard checks each request.
		DisableKeepAlives:      true,
		DisableCompression:     true, // the answer is relayed unchanged
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
	return c
}

// Request is one POST.
type Request struct {
	// URL is where to; see CheckURL for what is accepted.
	URL string
	// Secret is sent as the bearer token; empty: no Authorization.
	Secret string
	// ContentType is sent as it is; empty: none.
	ContentType string
	// ContentLength is the exact length of Body, as in http.Request of a server:
	// -1 is unknown (sent chunked), 0 is no body at all.
	ContentLength int64
	// Body is read once, to ContentLength bytes or io.EOF, and not closed. Post does not interrupt a
	// Read, so Body must bound its own reads (an HTTP server does so with a read deadline).
	Body io.Reader
	// RequestID is sent as X-Request-ID; empty: none.
	RequestID string
	// Timeout bounds the time from the end of the request, or from the answer's header if that arrives
	// first, to the answer's end. Zero is DefaultAnswerTimeout.
	Timeout time.Duration
}

// Answer is the complete answer of the receiver.
type Answer struct {
	// Status is 200 to 599: redirects are answers, informational statuses are not.
	Status int
	// ContentType is the receiver's header, unchecked; it may be empty.
	ContentType string
	// Body has at most MaxAnswerBytes.
	Body []byte
}

// Post sends the request and reads the whole answer. If a receiver answers before it has read the body
// (such as with a 413), Post returns that answer and does not read the rest of the body. Body is not
// read after Post has returned.
//
// The error matches ErrUnreachable if the receiver is the cause. It wraps Body's error if reading Body
// failed or Body ended early (io.ErrUnexpectedEOF); the receiver then gets a truncated request. It wraps
// ctx's error if ctx is done. The last two never match ErrUnreachable, and ErrUnreachable never matches
// an error of the context package.
func (c *Client) Post(ctx context.Context, r Request) (*Answer, error) {
	u, err := parseURL(r.URL)
	if err != nil {
		return nil, unreachable(err)
	}
	b := &requestBody{r: r.Body, lengthKnown: r.ContentLength >= 0, remaining: r.ContentLength}

	reqCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	clock := answerTimer{timeout: r.Timeout, expire: func() { cancel(errAnswerTimeout) }}
	defer clock.stop()
	reqCtx = httptrace.WithClientTrace(reqCtx, &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) { clock.start() },
	})

	req := (&http.Request{
		Method:        http.MethodPost,
		URL:           u,
		Host:          u.Host,
		Header:        header(r),
		Body:          b,
		ContentLength: r.ContentLength,
		// Set here although the transport disables keep-alives: otherwise the transport waits 50 ms after
		// an early answer for the body to end before it closes the connection.
		Close: true,
	}).WithContext(reqCtx)
	if r.Body == nil || r.ContentLength == 0 {
		// With any other Body the transport takes 0 for an unknown length.
		req.Body, req.ContentLength = http.NoBody, 0
	}

	answer, err := c.exchange(req, &clock)
	cancel(nil)
	bodyErr := b.detach()
	switch {
	case err == nil:
		return answer, nil
	case bodyErr != nil:
		return nil, fmt.Errorf("forward: read the request body: %w", bodyErr)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("forward: post: %w", ctx.Err())
	}
	return nil, unreachable(err)
}

// exchange sends the request and reads the answer. It uses the transport directly, because an
// http.Client would only add redirects and cookies.
func (c *Client) exchange(req *http.Request, clock *answerTimer) (*Answer, error) {
	res, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	clock.start()
	if res.StatusCode < 200 || res.StatusCode > 599 {
		return nil, fmt.Errorf("status %d is not a final answer of HTTP", res.StatusCode)
	}
	if res.ContentLength > c.maxAnswer {
		return nil, ErrAnswerTooLarge
	}
	content, err := io.ReadAll(io.LimitReader(res.Body, c.maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if int64(len(content)) > c.maxAnswer {
		return nil, ErrAnswerTooLarge
	}
	return &Answer{Status: res.StatusCode, ContentType: res.Header.Get("Content-Type"), Body: content}, nil
}

// control checks an address with the guard. The dialer calls it before each connect, for each address
// that a name resolves to.
func (c *Client) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %q is not an IP address", ErrDenied, address)
	}
	if err := c.guard.check(ap.Addr()); err != nil {
		return err
	}
	if c.onAllowed != nil {
		return c.onAllowed(ap)
	}
	return nil
}

// header returns the complete header of a request. Nothing else is sent.
func header(r Request) http.Header {
	h := http.Header{"User-Agent": {"molecule-platform"}}
	if r.Secret != "" {
		h.Set("Authorization", "Bearer "+r.Secret)
	}
	if r.ContentType != "" {
		h.Set("Content-Type", r.ContentType)
	}
	if r.RequestID != "" {
		h.Set("X-Request-ID", r.RequestID)
	}
	return h
}

// unreachable keeps the cause's text, and wraps only this package's errors: a dial timeout matches
// context.DeadlineExceeded, and would look like the caller's.
func unreachable(cause error) error {
	for _, kind := range []error{ErrDenied, ErrAnswerTooLarge, ErrBadURL} {
		if errors.Is(cause, kind) {
			return fmt.Errorf("forward: post: %w: %w", ErrUnreachable, cause)
		}
	}
	return fmt.Errorf("forward: post: %w: %v", ErrUnreachable, cause)
}

// answerTimer expires a timeout after the first start. The transport's goroutine and Post's both start
// it.
type answerTimer struct {
	timeout time.Duration
	expire  func()

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

func (k *answerTimer) start() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timer != nil || k.stopped {
		return
	}
	d := k.timeout
	if d <= 0 {
		d = DefaultAnswerTimeout
	}
	k.timer = time.AfterFunc(d, k.expire)
}

func (k *answerTimer) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopped = true
	if k.timer != nil {
		k.timer.Stop()
	}
}
