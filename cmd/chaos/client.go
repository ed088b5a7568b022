//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"time"
)

const (
	// requestTimeout is longer than the 10 s for which PostgreSQL is paused.
	requestTimeout = 20 * time.Second

	// keptAnswer is the number of bytes of an error answer that are recorded.
	keptAnswer = 300
)

// A request is what a client sends.
type request struct {
	kind     string
	replica  int
	w        *workspace
	token    string // "": the workspace's own; "-": none
	method   string // "": GET
	path     string
	header   http.Header
	body     []byte
	allowed  []int         // expected statuses; none: 200
	timeout  time.Duration // 0: requestTimeout
	about    string
	cutAfter int64 // close the connection after so many bytes of the answer; 0: never
}

// An answer is what a client received. Its operation is already recorded.
type answer struct {
	operation
	header http.Header
	body   []byte
}

// clients sends requests to the replicas.
type clients struct {
	history  *history
	replicas []string // addresses of the platforms' proxies, or only of the balancer's
	http     []*http.Client
}

func newClients(h *history, addrs []string) *clients {
	c := &clients{history: h, replicas: addrs}
	for range addrs {
		c.http = append(c.http, &http.Client{
			// The idle timeout is shorter than the platform's, so that the client closes idle connections first.
			Transport: &http.Transport{
				DialContext: dialTracked, MaxIdleConnsPerHost: 64, IdleConnTimeout: 20 * time.Second, DisableCompression: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		})
	}
	return c
}

func (c *clients) close() {
	for _, h := range c.http {
		h.CloseIdleConnections()
	}
}

// do sends the request once, reads the whole answer and records both. It closes the connection when client is done.
func (c *clients) do(client context.Context, r request) answer {
	limit := r.timeout
	if limit == 0 {
		limit = requestTimeout
	}
	ctx, cancel := context.WithTimeout(client, limit)
	defer cancel()
	a := answer{operation: operation{Kind: r.kind, Workspace: r.w.index, Replica: r.replica, About: r.about, Start: time.Now()}}
	err := c.exchange(ctx, r, &a)
	a.End = time.Now()
	switch {
	case err != nil:
		a.Outcome, a.Error = unknown, err.Error()
		a.cut = r.cutAfter > 0 || client.Err() != nil
	case a.Status >= http.StatusInternalServerError:
		a.Outcome = unknown
	case a.Status == http.StatusOK || a.Status == http.StatusPartialContent:
		a.Outcome = ok
	default:
		a.Outcome = refused
	}
	if err == nil {
		c.checkForm(r, &a)
	}
	if a.Outcome != ok {
		a.Answer = string(a.body[:min(len(a.body), keptAnswer)])
	}
	c.history.record(a.operation)
	return a
}

func (c *clients) exchange(ctx context.Context, r request, a *answer) error {
	req, err := http.NewRequestWithContext(ctx, r.method, "http://"+c.replicas[r.replica]+r.path, bytes.NewReader(r.body))
	if err != nil {
		return err
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	switch r.token {
	case "":
		req.Header.Set("Authorization", "Bearer "+r.w.token)
	case "-":
	default:
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	var by httptrace.GotConnInfo
	resp, err := c.http[r.replica].Do(req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { by = i },
	})))
	if err != nil {
		return explain(err, by)
	}
	defer resp.Body.Close()
	a.Status, a.header = resp.StatusCode, resp.Header
	if r.cutAfter > 0 && resp.StatusCode == http.StatusOK && resp.ContentLength > r.cutAfter {
		if a.body, err = io.ReadAll(io.LimitReader(resp.Body, r.cutAfter)); err != nil {
			return err
		}
		return errHungUp
	}
	a.body, err = io.ReadAll(resp.Body)
	return err
}

// errHungUp is the outcome of a download that the client cut on purpose.
var errHungUp = fmt.Errorf("the client closed the connection on purpose")

// checkForm checks what needs no history: the status is an expected one, and the body is JSON.
func (c *clients) checkForm(r request, a *answer) {
	content := r.kind == kindFetch && a.Outcome == ok
	if mediaType, _, err := mime.ParseMediaType(a.header.Get("Content-Type")); !content &&
		(err != nil || mediaType != "application/json" || !json.Valid(a.body)) {
		c.history.problem(unexpected, "%s answered %d with something that is not JSON: %q", r.kind, a.Status, a.body[:min(len(a.body), keptAnswer)])
	}
	if a.Outcome == unknown || slices.Contains(r.allowed, a.Status) || len(r.allowed) == 0 && a.Status == http.StatusOK {
		return
	}
	v := unexpected
	if a.Outcome == ok && r.kind == kindForbidden {
		v = crossed
	}
	c.history.problem(v, "%s of workspace %d (%s %s) answered %d: %s", r.kind, r.w.index, r.method, r.path, a.Status,
		a.body[:min(len(a.body), keptAnswer)])
}

// form returns the body of an upload. Its boundary is random.
func form(parts []part) (contentType string, body []byte) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range parts {
		target, _ := w.CreatePart(textproto.MIMEHeader{ // a buffer takes everything
			"Content-Disposition": {`form-data; name="files"; filename="` + p.name + `"`}, "Content-Type": {"application/octet-stream"},
		})
		_, _ = target.Write(p.content())
	}
	_ = w.Close()
	return w.FormDataContentType(), b.Bytes()
}
