package handlers

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/molecule-ai/platform/internal/fairshare"
)

// deadlines is a ResponseWriter that records the read deadlines that are set, as the time left; 0 is a cleared
// deadline.
type deadlines struct {
	http.ResponseWriter
	leave []time.Duration
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	if t.IsZero() {
		d.leave = append(d.leave, 0)
	} else {
		d.leave = append(d.leave, time.Until(t))
	}
	return nil
}

// last returns the current deadline.
func (d *deadlines) last() time.Duration { return d.leave[len(d.leave)-1] }

// bounded returns a request's body wrapped by BoundBody, and the deadlines that it sets.
func bounded(body io.Reader, window time.Duration) (io.Reader, *deadlines) {
	c, d := boundedContext(body, window)
	return c.Request.Body, d
}

func boundedContext(body io.Reader, window time.Duration) (*gin.Context, *deadlines) {
	d := &deadlines{ResponseWriter: httptest.NewRecorder()}
	c, _ := gin.CreateTestContext(d)
	c.Request = httptest.NewRequest(http.MethodPost, "/", body)
	BoundBody(window)(c)
	return c, d
}

// A body arrives a byte at a time, each after a wait. The time that the platform takes between two reads does
// not count. Planted: a new window with every read; a window that ends at a fixed time.
func TestBoundBody_OnlyAFullWindowExtendsTheDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const window, share, wait = 8 * time.Second, 8 * minBodyRate, 500 * time.Microsecond
		body, d := bounded(readerFunc(func(b []byte) (int, error) {
			time.Sleep(wait)
			return 1, nil
		}), window)
		for n := range 2*share + 2 {
			if n%1000 == 0 {
				time.Sleep(time.Minute) // time that the platform takes
			}
			if _, err := body.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if want := window - time.Duration(n%share)*wait; d.last() != want {
				t.Fatalf("byte %d: %v were left, want %v", n, d.last(), want)
			}
		}
	})
}

// Planted: the deadline left at the end; cleared when the body was too slow, which makes net/http wait for the
// rest.
func TestBoundBody_DeadlineIsClearedOnlyAtTheEnd(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		err, want error
		away      bool
	}{
		{"end", io.EOF, io.EOF, true},
		{"too slow", os.ErrDeadlineExceeded, errSlowBody, false},
		{"client gone", io.ErrUnexpectedEOF, io.ErrUnexpectedEOF, false},
	} {
		body, d := bounded(failing("some bytes", c.err), time.Second)
		for range 2 { // the error is sticky
			if _, err := io.Copy(io.Discard, readerFunc(body.Read)); !errors.Is(err, c.want) && c.want != io.EOF || c.want == io.EOF && err != nil {
				t.Errorf("%s: read ended with %v, want %v", c.name, err, c.want)
			}
		}
		if away := d.last() == 0; away != c.away {
			t.Errorf("%s: the deadline is cleared: %t", c.name, away)
		}
	}
}

func TestBoundBody_RequestWithoutABodyHasNoDeadline(t *testing.T) {
	t.Parallel()
	if body, d := bounded(http.NoBody, time.Second); body != http.NoBody || len(d.leave) > 0 {
		t.Errorf("body %T, deadlines %v", body, d.leave)
	}
}

// Planted: a new timeout for each read, so that it never ends; the deadline left at the end, or cleared when
// the client does not end.
func TestDrain_EndsWithTheBodyOrTheTimeout(t *testing.T) {
	t.Parallel()
	for name, ends := range map[string]bool{"ends": true, "never ends": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const window, wait = time.Minute, 100 * time.Millisecond
				start := time.Now()
				var d *deadlines
				c, d := boundedContext(readerFunc(func(b []byte) (int, error) {
					switch leave := d.last() - time.Since(start); {
					case ends && time.Since(start) >= 5*time.Second:
						return 0, io.EOF
					case leave <= 0:
						return 0, os.ErrDeadlineExceeded
					}
					time.Sleep(wait)
					return len(b), nil
				}), window)
				drain(c)
				took := time.Since(start)
				if ends && (took != 5*time.Second || d.last() != 0) {
					t.Errorf("took %v, deadline %v", took, d.last())
				}
				if !ends && (took != drainTimeout || d.last() != drainTimeout) {
					t.Errorf("took %v, deadline %v", took, d.last())
				}
				drain(c) // the body has ended
				if time.Since(start) != took {
					t.Errorf("a second drain took %v", time.Since(start)-took)
				}
			})
		})
	}
}

// Planted: Expect ignored; clients that sent Expect never drained.
func TestDrain_SkipsClientsThatAwait100Continue(t *testing.T) {
	t.Parallel()
	for _, asked := range []bool{false, true} {
		var read int
		c, _ := boundedContext(readerFunc(func(b []byte) (int, error) {
			if read++; read > 3 {
				return 0, io.EOF
			}
			return 1, nil
		}), time.Minute)
		c.Request.Header.Set("Expect", "100-Continue")
		if asked {
			_, _ = c.Request.Body.Read(make([]byte, 1))
		}
		drain(c)
		if drained := read > 1; drained != asked {
			t.Errorf("asked %t: read %d times", asked, read)
		}
	}
}

// Planted: released when the request ends.
func TestRender_ReleasesMemoryBeforeDraining(t *testing.T) {
	t.Parallel()
	const all = 100
	m, drained := fairshare.New(all), false
	c, _ := boundedContext(readerFunc(func([]byte) (int, error) {
		if drained = true; m.Free() != all {
			t.Error("the memory is still reserved")
		}
		return 0, io.EOF
	}), time.Minute)
	c.Set(memoryKey, &memoryReservation{budget: m})
	if err := reserve(c, all/2); err != nil {
		t.Fatal(err)
	}
	Render(c, fairshare.ErrSaturated)
	if !drained {
		t.Error("the body was not read")
	}
}
