// Package forward is the one HTTP client by which the platform calls a
// push-mode workspace: a POST to an address that the workspace itself supplied.
//
// That is server-side request forgery by design, so the client promises:
//   - It connects to globally routable addresses only, and to the networks that
//     the operator named (Options.AllowCIDRs). The check sees the address really
//     dialled, at every dial, so what a name resolved to earlier does not matter.
//   - It speaks http and https, HTTP/1.1, with TLS verification; it uses no proxy,
//     whatever the environment says, and follows no redirect.
//   - It sends the given body, Content-Type and length, a bearer secret and a
//     request id, and has no way to send any other header of the caller's.
//   - A receiver that is slow, stalls, never ends or answers too much costs a
//     timeout and MaxAnswerBytes of memory, no more.
//
// It does not retry: the body is a stream that can be read once. It does not
// judge the answer: any final status is an answer. It does not bound the time
// that the caller's body takes; the caller does. A network-specific NAT64 prefix
// (RFC 6052) looks like any other global address, and is not recognized.
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

// The kinds of failure. Callers tell them apart with errors.Is.
var (
	// ErrUnreachable: the receiver gave no usable answer. It covers every
	// failure that is not the caller's: name resolution, dial, TLS, the guard,
	// a stall, a timeout, an answer cut short or too large.
	ErrUnreachable = errors.New("receiver unreachable")
	// ErrDenied: the address is not one that the guard lets through.
	ErrDenied = errors.New("address denied by the outbound guard")
	// ErrAnswerTooLarge: the answer has more than MaxAnswerBytes.
	ErrAnswerTooLarge = errors.New("answer too large")
	// ErrBadURL: not an address that Post could ever call.
	ErrBadURL = errors.New("unusable url")
)

// Defaults for what Options and Request leave zero. A write is at most 32 KiB,
// so the default StallTimeout demands about 1 KiB/s of the receiver.
const (
	DefaultDialTimeout    = 10 * time.Second
	DefaultStallTimeout   = 30 * time.Second
	DefaultAnswerTimeout  = 60 * time.Second
	DefaultMaxAnswerBytes = 4 << 20
)

// maxHeaderBytes bounds the answer's status line and header.
const maxHeaderBytes = 64 << 10

// errAnswerTimeout is the cause with which Post cancels its own request.
var errAnswerTimeout = errors.New("no complete answer in time")

// Options configure a Client. The zero value is usable and denies everything
// that is not globally routable.
type Options struct {
	// AllowCIDRs are networks that may be called although the guard would deny
	// them. An IPv4 network also covers the IPv4-mapped form of its addresses.
	AllowCIDRs []netip.Prefix
	// Resolver looks names up; nil is the system's.
	Resolver *net.Resolver
	// DialTimeout bounds name resolution and connect together, and after them
	// the TLS handshake. Zero is DefaultDialTimeout.
	DialTimeout time.Duration
	// StallTimeout bounds each write of at most 32 KiB to the receiver. Zero is
	// DefaultStallTimeout.
	StallTimeout time.Duration
	// MaxAnswerBytes bounds the answer's body. Zero is DefaultMaxAnswerBytes.
	MaxAnswerBytes int64
}

// Client posts to workspaces. It is safe for concurrent use, keeps no
// connections, and needs no closing.
type Client struct {
	guard     guard
	transport *http.Transport
	maxAnswer int64

	// onAllowed, set by tests only, sees each address after the guard has let it
	// through and before anything is sent to it; an error stops the dial.
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
		Proxy: nil, // a proxy would resolve and dial where the guard cannot see
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
		// The receiver may have closed a kept connection, which shows only when
		// the body is on its way, and a body read from a stream cannot be sent
		// again. A new connection for each request also means a dial for each,
		// which is where the guard looks.
		DisableKeepAlives:      true,
		DisableCompression:     true, // the answer is relayed as it came
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
	// Body is read once, to ContentLength bytes or io.EOF, and not closed. Post
	// does not interrupt a Read, so Body has to bound its own (a server does,
	// with a read deadline).
	Body io.Reader
	// RequestID is sent as X-Request-ID; empty: none.
	RequestID string
	// Timeout bounds the time from the request fully written, or the answer's
	// header if that comes first, to the answer's end. Zero is
	// DefaultAnswerTimeout.
	Timeout time.Duration
}

// Answer is what the receiver said, complete.
type Answer struct {
	// Status is 200 or more: redirects are answers, informational ones are not.
	Status int
	// ContentType is the receiver's, unchecked; it may be empty.
	ContentType string
	// Body has at most MaxAnswerBytes.
	Body []byte
}

// Post sends the request and reads the whole answer. A receiver may answer
// before it has read the body (413, say); its answer is returned then, and the
// rest of the body is not read. When Post has returned it does not touch Body.
//
// Errors: one that matches ErrUnreachable if the receiver is to blame; Body's
// own error, wrapped, if reading it failed or it ended early
// (io.ErrUnexpectedEOF), and the receiver then sees a request cut short; ctx's
// error, wrapped, if ctx is over. The last two never match ErrUnreachable, and
// ErrUnreachable never matches an error of the context package.
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
		// Said here as well as on the transport, which after an early answer
		// would wait 50 ms for the body to end before it gives the connection up.
		Close: true,
	}).WithContext(reqCtx)
	if r.Body == nil || r.ContentLength == 0 {
		// To the transport, 0 with any other Body means unknown.
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

// exchange sends the request and reads the answer. It uses the transport itself:
// an http.Client on top of it would only add redirects and cookies.
func (c *Client) exchange(req *http.Request, clock *answerTimer) (*Answer, error) {
	res, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	clock.start()
	if res.StatusCode < 200 {
		return nil, fmt.Errorf("status %d is not a final answer", res.StatusCode)
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

// control is the guard's place: it runs between the choice of an address and
// the connect to it, for each address that a name resolves to.
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

// header builds the only header that ever leaves the platform this way.
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

// unreachable keeps the cause's text but only our own kinds in the chain: a
// dial timeout matches context.DeadlineExceeded, and would pass for the caller's.
func unreachable(cause error) error {
	for _, kind := range []error{ErrDenied, ErrAnswerTooLarge, ErrBadURL} {
		if errors.Is(cause, kind) {
			return fmt.Errorf("forward: post: %w: %w", ErrUnreachable, cause)
		}
	}
	return fmt.Errorf("forward: post: %w: %v", ErrUnreachable, cause)
}

// answerTimer gives the receiver its time to answer, counted from the first
// start. It is started from the transport's goroutine and from Post's.
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
