package handlers

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/molecule-ai/platform/internal/fairshare"
)

// jsonServer answers a POST with the length of its body once release is closed, and a GET with a page of
// 64 KiB.
func jsonServer(t *testing.T, budget int64, read chan<- struct{}, release <-chan struct{}) *httptest.Server {
	t.Helper()
	e := gin.New()
	e.Use(Account(fairshare.New(budget)))
	e.POST("/", Wrap(func(c *gin.Context) error {
		raw, err := readBody(c)
		if err != nil {
			return err
		}
		read <- struct{}{}
		<-release
		c.JSON(http.StatusOK, len(raw))
		return nil
	}))
	e.GET("/", Wrap(func(c *gin.Context) error {
		if err := reserve(c, 64<<10); err != nil {
			return err
		}
		c.Status(http.StatusOK)
		return nil
	}))
	s := httptest.NewServer(e)
	t.Cleanup(s.Close)
	return s
}

func status(t *testing.T, answer *http.Response, err error) int {
	t.Helper()
	if err != nil {
		t.Error(err)
		return 0
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, answer.Body)
	if answer.StatusCode == http.StatusServiceUnavailable && answer.Header.Get("Retry-After") == "" {
		t.Error("a 503 without Retry-After")
	}
	return answer.StatusCode
}

// Planted: nothing reserved; nothing released.
func TestMemory_IsBoundedAndReleased(t *testing.T) {
	t.Parallel()
	read, release := make(chan struct{}), make(chan struct{})
	// A body of 60 KiB reserves 64 to 80, because its buffer grows in steps. Two leave too little of the three quarters
	// that one workspace gets for a third.
	s := jsonServer(t, 240<<10, read, release)
	ended := make(chan int, 2)
	for range 2 {
		go func() {
			answer, err := s.Client().Post(s.URL, "application/json", strings.NewReader(strings.Repeat("x", 60<<10)))
			ended <- status(t, answer, err)
		}()
		select {
		case <-read:
		case got := <-ended:
			t.Fatalf("a body that there is room for: %d", got)
		}
	}
	answer, err := s.Client().Post(s.URL, "application/json", strings.NewReader(strings.Repeat("x", 60<<10)))
	if got := status(t, answer, err); got != http.StatusServiceUnavailable {
		t.Errorf("a third body: %d, want 503", got)
	}
	answer, err = s.Client().Get(s.URL)
	if got := status(t, answer, err); got != http.StatusServiceUnavailable {
		t.Errorf("a page: %d, want 503", got)
	}
	close(release)
	for range 2 {
		if got := <-ended; got != http.StatusOK {
			t.Errorf("a body that there was room for: %d", got)
		}
	}
	answer, err = s.Client().Get(s.URL)
	if got := status(t, answer, err); got != http.StatusOK {
		t.Errorf("a page when there is room again: %d", got)
	}
}

// An announced length must not block other requests. Planted: Content-Length reserved.
func TestMemory_CountsReceivedNotAnnouncedBytes(t *testing.T) {
	t.Parallel()
	s := jsonServer(t, 256<<10, nil, nil)
	r, w := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		request, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, r)
		request.ContentLength = 1 << 20
		answer, err := s.Client().Do(request)
		if err == nil {
			_ = answer.Body.Close()
		}
	}()
	if _, err := io.WriteString(w, "{"); err != nil { // the request is under way
		t.Fatal(err)
	}
	answer, err := s.Client().Get(s.URL)
	if got := status(t, answer, err); got != http.StatusOK {
		t.Errorf("a page beside a body that was only announced: %d", got)
	}
	_ = w.CloseWithError(io.ErrUnexpectedEOF)
	<-ended
}

// Planted: waiting for the database after the context is done, as lib/pq does.
func TestReady_TimesOutOnAHungDatabase(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		resume := make(chan struct{})
		h := NewOperatingHandler(func(context.Context) (Readiness, error) {
			<-resume
			return Readiness{}, nil
		})
		recorder := httptest.NewRecorder()
		c, _ := gin.CreateTestContext(recorder)
		c.Request = httptest.NewRequest(http.MethodGet, "/readyz", nil)
		start := time.Now()
		Wrap(h.Ready)(c)
		if recorder.Code != http.StatusServiceUnavailable || time.Since(start) != readyTimeout {
			t.Errorf("%d after %v", recorder.Code, time.Since(start))
		}
		close(resume)
	})
}
