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

// A page of the inbox is one Write of one or two MiB. At 10 KB/s that takes minutes, and all of it must arrive. Planted:
// one deadline for a whole Write.
func TestStallConn_ASlowReaderGetsEverything(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server, client := net.Pipe()
		const length, step = 2 << 20, 10 << 10
		ended := make(chan error, 1)
		go func() {
			_, err := stallConn{server, defaultTimeouts.write}.Write(make([]byte, length))
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
func TestStallConn_AClientThatStopsReadingIsCutOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server, client := net.Pipe()
		defer client.Close()
		start := time.Now()
		n, err := stallConn{server, defaultTimeouts.write}.Write(make([]byte, 1<<20))
		if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != defaultTimeouts.write {
			t.Errorf("%d bytes, %v after %v", n, err, time.Since(start))
		}
	})
}

// The connection of a client that has stopped reading is reset, so that the kernel discards what it had buffered.
// Planted: an ordinary close, after which the kernel keeps it for minutes.
func TestStallConn_AClientThatIsCutOffIsReset(t *testing.T) {
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

// net/http half-closes the connection after an early answer, if it can.
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

// connected returns both ends of a connection; conn was accepted by a stallListener.
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
