package handlers_test

import (
	"net/http"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// Planted: one admission for uploads and messages.
func TestAdmission_SlowAgentsDoNotBlockUploads(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.MaxUploads, s.MaxMessages = "1", "1" })
	called, think := make(chan struct{}), make(chan struct{})
	agent := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		close(called)
		<-think
		w.WriteHeader(http.StatusOK)
	})
	thinker := p.Create(t, "push", agent.URL)
	answers := make(chan int)
	go func() { answers <- ask(t, p, thinker).Status }()
	<-called
	stage(t, p, p.Create(t, "poll", ""), "while the agent thinks")
	answered(t, ask(t, p, thinker), http.StatusServiceUnavailable,
		map[string]any{"error": "the platform is busy; retry shortly", "code": "saturated"})
	// Planted: every 5xx logged as an error, so that a client that is too fast pages somebody.
	if lines := p.Logs.Lines(t, "failed"); len(lines) > 0 {
		t.Errorf("logged as a failure: %v", lines)
	}
	close(think)
	if status := <-answers; status != http.StatusOK {
		t.Errorf("the agent's answer: %d", status)
	}
}
