//go:build linux

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
)

// client is shared by all workers. Its connections stay open, like a browser's and a poller's.
var client = &http.Client{Transport: &http.Transport{
	MaxIdleConnsPerHost: 20_000, IdleConnTimeout: 20 * time.Second, DisableCompression: true,
}}

// A workspace is a poll-mode workspace.
type workspace struct {
	id    uuid.UUID
	token string
}

// addWorkspaces inserts n workspaces into the database directly, which is faster than ten thousand requests.
func (p *platform) addWorkspaces(ctx context.Context, n int) ([]workspace, error) {
	added := make([]workspace, n)
	ids, hashes := make([]uuid.UUID, n), make([][]byte, n)
	for i := range added {
		secret := make([]byte, 32)
		for j := range secret {
			secret[j] = byte(rand.Uint32())
		}
		added[i] = workspace{uuid.New(), "mol_ws_" + base64.RawURLEncoding.EncodeToString(secret)}
		hash := sha256.Sum256([]byte(added[i].token))
		ids[i], hashes[i] = added[i].id, hash[:]
	}
	_, err := p.db.ExecContext(ctx, `WITH w AS (
		INSERT INTO workspaces (id, status, delivery_mode) SELECT unnest($1::uuid[]), 'online', 'poll'
	) INSERT INTO workspace_tokens (workspace_id, token_hash, prefix) SELECT id, hash, 'bench' FROM unnest($1::uuid[], $2::bytea[]) AS t (id, hash)`,
		pq.Array(ids), pq.Array(hashes))
	return added, err
}

// do sends a request and returns the answer. Any status but 200 is an error.
func (p *platform) do(ctx context.Context, token, method, path, contentType string, body io.Reader, length int64) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, cmp.Or(p.bare, p.url)+path, body)
	if err != nil {
		return nil, err
	}
	request.ContentLength = length
	request.Header.Set("Authorization", "Bearer "+token)
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		answer, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		response.Body.Close()
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, response.Status, answer)
	}
	return response, nil
}

// call sends a request and reads the answer to its end.
func (p *platform) call(ctx context.Context, token, method, path string, body []byte) ([]byte, error) {
	contentType := ""
	if body != nil {
		contentType = "application/json"
	}
	response, err := p.do(ctx, token, method, path, contentType, bytes.NewReader(body), int64(len(body)))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

// upload sends data as one file.
func (p *platform) upload(ctx context.Context, w workspace, data []byte) error {
	var head bytes.Buffer
	form := multipart.NewWriter(&head)
	if _, err := form.CreateFormFile("files", "bench.bin"); err != nil {
		return err
	}
	tail := "\r\n--" + form.Boundary() + "--\r\n"
	length := int64(head.Len() + len(data) + len(tail))
	body := io.MultiReader(&head, bytes.NewReader(data), bytes.NewReader([]byte(tail)))
	response, err := p.do(ctx, w.token, http.MethodPost, "/workspaces/"+w.id.String()+"/chat/uploads", form.FormDataContentType(), body, length)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

var readBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// content downloads a file, and sets s.first to the time until its first byte.
func (p *platform) content(ctx context.Context, w workspace, file uuid.UUID, size int64, s *sample) error {
	start := time.Now()
	response, err := p.do(ctx, w.token, http.MethodGet, w.filePath(file)+"/content", "", nil, 0)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	buffer := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(buffer)
	var got int64
	for {
		n, err := response.Body.Read(*buffer)
		if n > 0 && got == 0 {
			s.first = time.Since(start)
		}
		got += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if got != size {
		return fmt.Errorf("%d bytes, want %d", got, size)
	}
	return nil
}

func (w workspace) filePath(file uuid.UUID) string {
	return "/workspaces/" + w.id.String() + "/pending-uploads/" + file.String()
}

func (p *platform) ack(ctx context.Context, w workspace, file uuid.UUID) error {
	_, err := p.call(ctx, w.token, http.MethodPost, w.filePath(file)+"/ack", nil)
	return err
}

// send sends a message to w.
func (p *platform) send(ctx context.Context, w workspace) error {
	_, err := p.call(ctx, adminToken, http.MethodPost, "/workspaces/"+w.id.String()+"/a2a",
		[]byte(`{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"parts":[{"kind":"text","text":"hello"}]}}}`))
	return err
}

// poll reads the rows after a cursor. It returns the id of the last row, or after if there is none.
func (p *platform) poll(ctx context.Context, w workspace, after string, wait int) (string, error) {
	path := fmt.Sprintf("/workspaces/%s/activity?type=a2a_receive&since_id=%s", w.id, after)
	if wait > 0 {
		path += fmt.Sprintf("&wait=%d", wait)
	}
	body, err := p.call(ctx, w.token, http.MethodGet, path, nil)
	if err != nil {
		return "", err
	}
	var rows []struct{ ID string }
	if err := json.Unmarshal(body, &rows); err != nil {
		return "", err
	}
	if len(rows) == 0 {
		return after, nil
	}
	return rows[len(rows)-1].ID, nil
}

var errRows = errors.New("the inbox is not empty")
