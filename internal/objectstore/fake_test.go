package objectstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestMain gives the SDK credentials and the authority of httptest's certificates.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		server := httptest.NewTLSServer(nil)
		certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
		server.Close()
		dir, err := os.MkdirTemp("", "objectstore-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		bundle := filepath.Join(dir, "ca.pem")
		if err := os.WriteFile(bundle, certificate, 0o600); err != nil {
			panic(err)
		}
		for name, value := range map[string]string{
			"AWS_ACCESS_KEY_ID": "test-access", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_CA_BUNDLE": bundle,
			"AWS_CONFIG_FILE": filepath.Join(dir, "none"), "AWS_SHARED_CREDENTIALS_FILE": filepath.Join(dir, "none"),
		} {
			if err := os.Setenv(name, value); err != nil {
				panic(err)
			}
		}
		return m.Run()
	}())
}

// An oldStore speaks S3 as it was before checksums came in trailers and headers, and refuses what is newer.
type oldStore struct {
	*httptest.Server
	fail func(*http.Request) (status int, code string) // "": answer

	mu       sync.Mutex
	objects  map[string][]byte
	parts    map[string][]byte // of unfinished uploads, by id
	received int64
	requests []string // method and path
	refused  []string
}

func newOldStore(t *testing.T) *oldStore {
	t.Helper()
	s := &oldStore{objects: map[string][]byte{}, parts: map[string][]byte{}}
	s.Server = httptest.NewTLSServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *oldStore) open(t *testing.T, parameters string) *Store {
	t.Helper()
	store, err := Open(t.Context(), "s3://bucket?endpoint="+s.URL+parameters, space)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// tooNew returns the header of a request that such a store does not know, or that proxies break.
func tooNew(r *http.Request) string {
	for header, values := range r.Header {
		lower, value := strings.ToLower(header), strings.Join(values, ",")
		if lower == "x-amz-trailer" || strings.HasPrefix(lower, "x-amz-checksum-") || lower == "x-amz-sdk-checksum-algorithm" ||
			strings.Contains(value, "aws-chunked") || strings.HasPrefix(value, "STREAMING-") {
			return header + ": " + value
		}
	}
	signed := r.Header.Get("Authorization")
	if strings.Contains(signed, "accept-encoding") || r.Header.Get("Accept-Encoding") != "identity" {
		return "Accept-Encoding, which is signed or not sent: " + signed
	}
	return ""
}

func (s *oldStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path)
	refuse := func(status int, code string) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>what the store says</Message></Error>", code)
	}
	if s.fail != nil {
		if status, code := s.fail(r); code != "" {
			refuse(status, code)
			return
		}
	}
	if header := tooNew(r); header != "" && r.URL.Query().Get("X-Amz-Signature") == "" {
		s.refused = append(s.refused, header)
		refuse(http.StatusNotImplemented, "NotImplemented")
		return
	}
	if sum := sha256.Sum256(body); len(body) > 0 && r.Header.Get("X-Amz-Content-Sha256") != hex.EncodeToString(sum[:]) {
		refuse(http.StatusBadRequest, "XAmzContentSHA256Mismatch")
		return
	}
	s.received += int64(len(body))
	s.answer(w, r, body, refuse)
}

func (s *oldStore) answer(w http.ResponseWriter, r *http.Request, body []byte, refuse func(int, string)) {
	name, q := r.URL.Path, r.URL.Query()
	id := q.Get("uploadId")
	switch {
	case r.Method == http.MethodPost && q.Has("uploads"):
		id = fmt.Sprint(len(s.requests))
		s.parts[id] = []byte{}
		fmt.Fprintf(w, "<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>", id)
	case r.Method == http.MethodPut && id != "":
		s.parts[id] = append(s.parts[id], body...)
		w.Header().Set("ETag", `"part"`)
	case r.Method == http.MethodPost:
		s.objects[name] = s.parts[id]
		delete(s.parts, id)
		fmt.Fprint(w, "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")
	case r.Method == http.MethodDelete && id != "":
		delete(s.parts, id)
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodPut:
		s.objects[name] = body
	case s.objects[name] == nil:
		refuse(http.StatusNotFound, "NoSuchKey")
	case r.Method == http.MethodDelete:
		delete(s.objects, name)
		w.WriteHeader(http.StatusNoContent)
	default:
		http.ServeContent(w, r, "", testTime, bytes.NewReader(s.objects[name]))
	}
}
