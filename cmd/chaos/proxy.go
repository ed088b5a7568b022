//go:build linux

package main

import (
	"io"
	"net"
	"sync"
)

// A proxy stands between two parties, and can cut what they have.
type proxy struct {
	listener net.Listener
	network  string
	target   string

	mu     sync.Mutex
	links  map[*link]struct{}
	closed bool // new connections are cut at once
}

// A link is a connection and its continuation.
type link struct{ near, far net.Conn }

// newProxy listens on a free loopback port, and keeps it.
func newProxy(network, target string) (*proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: listener, network: network, target: target, links: map[*link]struct{}{}}
	go p.run()
	return p, nil
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

func (p *proxy) run() {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.serve(near)
	}
}

func (p *proxy) serve(near net.Conn) {
	far, err := net.Dial(p.network, p.target)
	if err != nil {
		reset(near)
		return
	}
	l := &link{near, far}
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.links[l] = struct{}{}
	}
	p.mu.Unlock()
	if closed {
		l.cut()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { l.pass(far, near) })
	both.Go(func() { l.pass(near, far) })
	both.Wait()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
	near.Close()
	far.Close()
}

// pass copies one way. An end is passed on as an end, a failure as a failure.
func (l *link) pass(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		l.cut()
		return
	}
	if half, ok := to.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		l.cut()
	}
}

// cut ends both sides as a broken line does.
func (l *link) cut() {
	reset(l.near)
	reset(l.far)
}

func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	c.Close()
}

// cut cuts all connections there are, and while it is down new ones too.
func (p *proxy) cut(down bool) {
	p.mu.Lock()
	p.closed = down
	links := p.links
	p.links = map[*link]struct{}{}
	p.mu.Unlock()
	for l := range links {
		l.cut()
	}
}

func (p *proxy) up() {
	p.mu.Lock()
	p.closed = false
	p.mu.Unlock()
}

func (p *proxy) close() {
	p.listener.Close()
	p.cut(true)
}
