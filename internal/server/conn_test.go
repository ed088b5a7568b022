package server

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
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
			_, err := stallConn{server, usualPatience.write}.Write(make([]byte, length))
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
		n, err := stallConn{server, usualPatience.write}.Write(make([]byte, 1<<20))
		if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != usualPatience.write {
			t.Errorf("%d bytes, %v after %v", n, err, time.Since(start))
		}
	})
}

// Who has stopped reading is reset, so that the kernel drops what it still had for him. Planted: an
// ordinary close, after which it keeps that for minutes.
func TestStallConn_WhoIsCutIsReset(t *testing.T) {
	t.Parallel()
	client, conn := connected(t, 100*time.Millisecond)
	for err := error(nil); err == nil; {
		_, err = conn.Write(make([]byte, 1<<20))
	}
	_ = conn.Close()
	if n, err := io.Copy(io.Discard, client); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client reads %d bytes and then %v, want a reset", n, err)
	}
}

// net/http sends early answers with a half-close after them, if the connection can.
func TestStallConn_PassesTheHalfCloseOn(t *testing.T) {
	t.Parallel()
	client, conn := connected(t, time.Minute)
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

// connected returns both ends of a connection; the second was accepted.
func connected(t *testing.T, timeout time.Duration) (client, conn net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if client, err = net.Dial("tcp", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if conn, err = (stallListener{listener, timeout}).Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return client, conn
}
