package server

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// A page of the inbox is one Write of a MiB or two; at 10 KB/s that takes minutes, and all of
// it must come. Planted: one deadline for a whole Write.
func TestStallConn_WhoReadsSlowlyGetsAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server, client := net.Pipe()
		const length, step = 2 << 20, 10 << 10
		ended := make(chan error, 1)
		go func() {
			_, err := stallConn{server, stallTimeout}.Write(make([]byte, length))
			ended <- err
			_ = server.Close()
		}()
		var got int64
		for {
			time.Sleep(time.Second)
			n, err := io.CopyN(io.Discard, client, step)
			got += n
			if err != nil {
				break
			}
		}
		if err := <-ended; err != nil || got != length {
			t.Errorf("%d of %d bytes, %v", got, length, err)
		}
	})
}

// Planted: no deadline.
func TestStallConn_WhoStopsReadingIsCut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server, client := net.Pipe()
		defer client.Close()
		start := time.Now()
		n, err := stallConn{server, stallTimeout}.Write(make([]byte, 1<<20))
		if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != stallTimeout {
			t.Errorf("%d bytes, %v after %v", n, err, time.Since(start))
		}
	})
}

// net/http sends early answers with a half-close after them, if the connection can.
func TestStallConn_PassesTheHalfCloseOn(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := stallListener{listener, stallTimeout}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		t.Fatal("the connection cannot be half-closed")
	}
	if err := half.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := client.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := client.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the client reads %d bytes, %v; want the end", n, err)
	}
}
