package handlers_test

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

// A body may take minutes; what a token sent that was revoked meanwhile is not staged. Planted: the token checked only
// before the body.
func TestUpload_TokenRevokedMeanwhileStagesNothing(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	for name, revoke := range map[string]string{
		"revoked": "UPDATE workspace_tokens SET revoked_at = now() WHERE workspace_id = $1",
		"removed": "UPDATE workspaces SET status = 'removed', removed_at = now() WHERE id = $1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := p.Create(t, "poll", "")
			whole := form(file("a.txt", "text/plain", "content"))
			read, write := io.Pipe()
			go func() {
				_, _ = io.WriteString(write, whole[:len(whole)/2])
				waitUntil(t, p, "SELECT last_used_at IS NOT NULL FROM workspace_tokens WHERE workspace_id = $1", w.ID) // it was admitted
				exec(t, p, revoke, w.ID)
				_, _ = io.WriteString(write, whole[len(whole)/2:])
				_ = write.Close()
			}()
			if r := p.Do(t, uploadRequest(w, read)); r.Status != http.StatusUnauthorized {
				t.Errorf("%d %s, want 401", r.Status, r.Body)
			}
			var left int
			if err := p.DB.QueryRowContext(t.Context(), `SELECT (SELECT count(*) FROM pending_uploads WHERE workspace_id = $1) +
				(SELECT count(*) FROM activity_logs WHERE workspace_id = $1)`, w.ID).Scan(&left); err != nil || left != 0 {
				t.Errorf("%d rows, %v; want none", left, err)
			}
		})
	}
}

// waitUntil returns when the query is true.
func waitUntil(t *testing.T, p *servertest.Platform, query string, args ...any) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var yes bool
		if err := p.DB.QueryRowContext(t.Context(), query, args...).Scan(&yes); err != nil || time.Now().After(deadline) {
			t.Errorf("%s: not in time, %v", query, err)
			return
		}
		if yes {
			return
		}
	}
}
