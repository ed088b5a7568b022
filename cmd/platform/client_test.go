package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/server/servertest"
)

// call calls the platform; the answer is checked against the OpenAPI file.
func (p *process) call(t *testing.T, request servertest.Request) *servertest.Response {
	t.Helper()
	return (&servertest.Platform{URL: p.url}).Do(t, request)
}

// get calls the platform and decodes the JSON of a 200 into v.
func (p *process) get(t *testing.T, token, path string, v any) {
	t.Helper()
	r := p.call(t, servertest.Request{Path: path, Token: token})
	if r.Status != http.StatusOK {
		t.Fatalf("GET %s: %d %s", path, r.Status, r.Body)
	}
	r.JSON(t, v)
}

// create creates a workspace, with the operator's token.
func (p *process) create(t *testing.T, admin, mode, url string) servertest.Workspace {
	t.Helper()
	body := fmt.Sprintf(`{"name":"laptop","delivery_mode":%q,"url":%q}`, mode, url)
	r := p.call(t, servertest.Request{Method: http.MethodPost, Path: "/workspaces", Token: admin, Body: strings.NewReader(body)})
	if r.Status != http.StatusCreated {
		t.Fatalf("create workspace: %d %s", r.Status, r.Body)
	}
	var made struct {
		ID     string `json:"id"`
		Token  string `json:"auth_token"`
		Secret string `json:"platform_inbound_secret"`
	}
	r.JSON(t, &made)
	return servertest.Workspace(made)
}

// upload posts files to a workspace like a browser, and returns the answer.
func (p *process) upload(t *testing.T, w servertest.Workspace, files ...file) *servertest.Response {
	t.Helper()
	contentType, body := form(files...)
	return p.call(t, servertest.Request{
		Method: http.MethodPost, Path: uploads(w.ID), Token: w.Token,
		Header: http.Header{"Content-Type": {contentType}}, Body: bytes.NewReader(body),
	})
}

// mustUpload is upload, and fails unless the answer is 200. It returns the staged files.
func (p *process) mustUpload(t *testing.T, w servertest.Workspace, files ...file) []stagedFile {
	t.Helper()
	r := p.upload(t, w, files...)
	if r.Status != http.StatusOK {
		t.Fatalf("upload: %d %s", r.Status, r.Body)
	}
	answer, err := staged(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// fetch downloads a file.
func (p *process) fetch(t *testing.T, w servertest.Workspace, id string, header http.Header) *servertest.Response {
	t.Helper()
	return p.call(t, servertest.Request{Path: pending(w.ID) + "/" + id + "/content", Token: w.Token, Header: header})
}

// post is upload for concurrent use and for a platform that may be killed: it fails no test. The error is nil only if
// the whole answer was read.
func (p *process) post(client *http.Client, w servertest.Workspace, contentType string, body io.Reader) (status int, files []stagedFile, err error) {
	request, err := http.NewRequest(http.MethodPost, p.url+uploads(w.ID), body)
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Authorization", "Bearer "+w.Token)
	request.Header.Set("Content-Type", contentType)
	answer, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, nil, err
	}
	files, err = staged(raw)
	return answer.StatusCode, files, err
}

// download downloads a file without holding it in memory, and checks its size and digest.
func (p *process) download(w servertest.Workspace, f stagedFile) error {
	request, err := http.NewRequest(http.MethodGet, p.url+pending(w.ID)+"/"+f.id()+"/content", nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+w.Token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	digest := sha256.New()
	n, err := io.Copy(digest, answer.Body)
	if err != nil {
		return fmt.Errorf("fetch %s: %w", f.id(), err)
	}
	if sum := hex.EncodeToString(digest.Sum(nil)); answer.StatusCode != http.StatusOK || n != f.Size || sum != f.SHA256 {
		return fmt.Errorf("fetch %s: %d, %d bytes with SHA-256 %s, want %d with %s", f.id(), answer.StatusCode, n, sum, f.Size, f.SHA256)
	}
	return nil
}

// file is a file to upload.
type file struct {
	name    string // as it is written between the quotes of the header
	content []byte
}

// stagedFile is a file in the answer to an upload.
type stagedFile struct {
	URI    string `json:"uri"`
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// id returns the last part of the URI.
func (f stagedFile) id() string { return f.URI[strings.LastIndexByte(f.URI, '/')+1:] }

// staged parses the answer to an upload.
func staged(body []byte) ([]stagedFile, error) {
	var answer struct {
		Files []stagedFile `json:"files"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("answer to an upload: %w: %s", err, body)
	}
	return answer.Files, nil
}

// form returns the body of an upload. Names are sent unescaped in UTF-8, like a browser's.
func form(files ...file) (contentType string, body []byte) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, f := range files {
		_, _ = part(w, f.name).Write(f.content) // a buffer takes everything
	}
	_ = w.Close()
	return w.FormDataContentType(), b.Bytes()
}

// part starts the part of a file.
func part(w *multipart.Writer, name string) io.Writer {
	header := textproto.MIMEHeader{"Content-Disposition": {`form-data; name="files"; filename="` + name + `"`}, "Content-Type": {"application/octet-stream"}}
	target, err := w.CreatePart(header)
	if err != nil {
		return errorWriter{err}
	}
	return target
}

// errorWriter returns the error at the next write, where it is checked.
type errorWriter struct{ err error }

func (w errorWriter) Write([]byte) (int, error) { return 0, w.err }

func uploads(workspace string) string { return "/workspaces/" + workspace + "/chat/uploads" }
func pending(workspace string) string { return "/workspaces/" + workspace + "/pending-uploads" }
