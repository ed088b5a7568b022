package server_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/database/databasetest"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

const (
	// Sessions of the pooler, and workspaces that use them at the same time, each through the 21 connections of two
	// replicas.
	poolerSessions   = 4
	poolerWorkspaces = 12
)

// sendOnce uploads one file with a key, and returns it.
func sendOnce(t testing.TB, p *servertest.Platform, w servertest.Workspace, key, name string, content []byte) (u upload, ok bool) {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	part, _ := form.CreateFormFile("files", name) // a buffer takes everything
	_, _ = part.Write(content)
	_ = form.Close()
	r := p.Do(t, servertest.Request{Method: http.MethodPost, Path: "/workspaces/" + w.ID + "/chat/uploads", Token: w.Token, Body: &body,
		Header: http.Header{"Content-Type": {form.FormDataContentType()}, "Idempotency-Key": {key}}})
	var answer struct{ Files []upload }
	if r.Status != http.StatusOK {
		t.Errorf("upload %s: %d %s", name, r.Status, r.Body)
		return upload{}, false
	}
	r.JSON(t, &answer)
	sum := sha256.Sum256(content)
	if len(answer.Files) != 1 || answer.Files[0].SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("upload %s: %s", name, r.Body)
		return upload{}, false
	}
	return answer.Files[0], true
}

// Two replicas and twelve workspaces share four sessions of PostgreSQL, so that hardly any two statements of a connection
// run in the same session: small and large uploads with keys, repeated at the other replica; held polls and streams that
// are woken; downloads, lists, acks, the sweep; and a token that is revoked.
//
// Planted: named prepared statements through the pooler.
func TestPgBouncer_EverythingWorksThroughIt(t *testing.T) {
	t.Parallel()
	direct := pgtest.New(t)
	pooler := databasetest.StartPgBouncer(t, direct, poolerSessions)
	pooled := func(s *config.Settings) {
		s.DatabaseURL, s.DatabaseDirectURL, s.AckRetention, s.SweepInterval = pooler, direct, "0s", "1s"
	}
	replicas := []*servertest.Platform{servertest.Start(t, pooled), servertest.Start(t, pooled)}
	db := pgtest.Open(t, direct)
	const listeners = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'`
	for begun, n := time.Now(), 0; n < 2; time.Sleep(10 * time.Millisecond) {
		if err := db.QueryRowContext(t.Context(), listeners).Scan(&n); err != nil || time.Since(begun) > testTimeout {
			t.Fatalf("%d replicas listen, %v", n, err)
		}
	}
	var wg sync.WaitGroup
	for i := range poolerWorkspaces {
		w := replicas[i%2].Create(t, "poll", "")
		wg.Go(func() { useEverything(t, replicas[i%2], replicas[1-i%2], w, rand.New(rand.NewPCG(1, uint64(i)))) })
	}
	wg.Wait()
	var sessions int
	const count = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`
	if err := db.QueryRowContext(t.Context(), count).Scan(&sessions); err != nil || sessions > poolerSessions+2*5+2 {
		t.Errorf("%d sessions, %v", sessions, err)
	}
}

// More concurrent large uploads than the pooler has sessions: each holds one while it makes its reservation and records
// its object. Planted: either of these through the pooler; uploads that hold all of its sessions then wait until its
// query_wait_timeout.
func TestPgBouncer_LargeUploadsDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	direct := pgtest.New(t)
	pooler := databasetest.StartPgBouncer(t, direct, 2)
	for _, store := range []string{"", "file://" + t.TempDir()} {
		p := servertest.Start(t, func(s *config.Settings) {
			s.DatabaseURL, s.DatabaseDirectURL, s.StorageURL = pooler, direct, store
		})
		content := make([]byte, mib+1)
		var wg sync.WaitGroup
		for range 8 {
			w := p.Create(t, "poll", "")
			wg.Go(func() { sendOnce(t, p, w, "key", "large.bin", content) })
		}
		wg.Wait()
	}
}

// useEverything does with a workspace everything that the API allows, half of it through each replica.
func useEverything(t *testing.T, a, b *servertest.Platform, w servertest.Workspace, rng *rand.Rand) {
	stream := listen(t, b, w.ID, w.Token, "")
	say(t, a, w, "first")
	last := first(t, a, w, "").ID
	stream.next()
	for round, size := range []int{0, 1, 100_000, mib + 1, 3*mib + 5, mib} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(rng.Uint32())
		}
		name, key := fmt.Sprintf("f%d.bin", round), fmt.Sprintf("key-%d", round)
		poll := hold(t, b, w, w.Token, "wait=55&since_id="+last)
		u, ok := sendOnce(t, a, w, key, name, content)
		if !ok {
			return
		}
		if again, ok := sendOnce(t, b, w, key, name, content); ok && again.ID() != u.ID() {
			t.Errorf("%s: sent again with its key it is another file", name)
		}
		r, _ := poll.end(t)
		var rows []row
		if r.JSON(t, &rows); len(rows) != 1 {
			t.Errorf("%s: the held poll brought %s", name, r.Body)
			return
		}
		last = rows[0].ID
		e := stream.next()
		if e.Kind == "fetched" && e.State == "acked" { // the last file's, written down after its ack
			e = stream.next()
		}
		if e.Kind != "staged" || e.FileID != u.ID() {
			t.Errorf("%s: event %s", name, e)
		}
		path := "/workspaces/" + w.ID + "/pending-uploads"
		if r := call(t, b, http.MethodGet, path+"/"+u.ID()+"/content", w.Token, ""); r.Status != http.StatusOK || !bytes.Equal(r.Body, content) {
			t.Errorf("%s: %d, %d bytes that are not those sent", name, r.Status, len(r.Body))
		}
		var list []map[string]any
		if must(t, a, http.StatusOK, http.MethodGet, path, w.Token, "", &list); len(list) != 1 {
			t.Errorf("%s: the list has %d files", name, len(list))
		}
		ack(t, b, w, u.ID())
		for gone := false; !gone; time.Sleep(10 * time.Millisecond) {
			// Swept by whichever replica comes first.
			gone = call(t, a, http.MethodGet, path+"/"+u.ID(), w.Token, "").Status == http.StatusNotFound
		}
		for e := stream.next(); e.Kind != "acked"; e = stream.next() {
			if e.Kind != "fetched" {
				t.Errorf("%s: event %s", name, e)
			}
		}
	}
	id, token := mint(t, a, w)
	must(t, b, http.StatusOK, http.MethodGet, "/workspaces/"+w.ID, token, "", nil)
	poll := hold(t, b, w, token, "wait=55&since_id="+last)
	poll.isHeld(t)
	must(t, a, http.StatusOK, http.MethodDelete, "/workspaces/"+w.ID+"/tokens/"+id, w.Token, "", nil)
	if r := call(t, b, http.MethodGet, "/workspaces/"+w.ID, token, ""); r.Status != http.StatusUnauthorized {
		t.Errorf("a token that the other replica has revoked: %d", r.Status)
	}
	if r, took := poll.end(t); r.Status != http.StatusUnauthorized || took > 6*time.Second {
		t.Errorf("a poll held with it: %d after %v", r.Status, took)
	}
}
