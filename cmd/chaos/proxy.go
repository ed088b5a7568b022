//go:build linux

package main

import (
	"io"
	"net"
	"sync"
)

// A proxy forwards TCP connections, and can cut them.
type proxy struct {
	listener net.Listener
	network  string
	target   string

	mu     sync.Mutex
	links  map[*link]struct{}
	closed bool // new connections are reset at once
}

// A link is a connection from the client (near) and the one to the target (far).
type link struct{ near, far net.Conn }

// newProxy listens on a free loopback port.
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

// pass copies in one direction. It forwards a close as a close, and a failure as a reset.
func (l *link) pass(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		l.cut()
		return
	}
	if half, ok := to.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		l.cut()
	}
}

// cut resets both connections.
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

// cut resets all connections. With down, new ones are reset too, until up is called.
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
