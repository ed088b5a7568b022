package objectstore

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

var testTime = time.Date(2026, 7, 1, 10, 0, 0, 0, time.UTC)

// once is content that can be read once only.
type once struct{ io.Reader }

// Stores that know no checksums in trailers or headers take all that the platform does, over TLS as well, and
// they can check what they get by its signed SHA-256. Planted: the SDK's default; the payload not signed;
// Accept-Encoding signed; Accept-Encoding not sent; the last part left out.
func TestS3_OldStoresTakeEverything(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		size     int
		once     bool
		requests int // of the write
	}{
		"empty":                   {0, false, 1},
		"one byte":                {1, false, 1},
		"exactly a part":          {partBytes, false, 1},
		"parts":                   {2*partBytes + 1, false, 5},
		"read once":               {1 << 20, true, 1},
		"read once, empty":        {0, true, 1},
		"read once, exactly one":  {onceBytes, true, 1},
		"read once, several":      {2*onceBytes + 1, true, 5},
		"read once, exactly some": {2 * onceBytes, true, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newOldStore(t)
			s, key := server.open(t, ""), uuid.New()
			want := bytes.Repeat([]byte("0123456789abcdef!"), c.size/17+1)[:c.size]
			var content io.Reader = bytes.NewReader(want)
			if c.once {
				content = once{content}
			}
			if err := s.Write(t.Context(), key, int64(c.size), content); err != nil {
				t.Fatalf("%v; refused %q", err, server.refused)
			}
			if len(server.requests) != c.requests || len(server.parts) != 0 {
				t.Errorf("%d requests, want %d; %d unfinished", len(server.requests), c.requests, len(server.parts))
			}
			for _, offset := range []int{0, c.size / 2, max(0, c.size-1)} {
				r, size, err := s.Read(t.Context(), key, int64(offset))
				if err != nil {
					t.Fatalf("%v; refused %q", err, server.refused)
				}
				got, err := io.ReadAll(r)
				if err := errors.Join(err, r.Close()); err != nil || size != int64(c.size) || !bytes.Equal(got, want[offset:]) {
					t.Errorf("from %d: %d bytes of %d, %v", offset, len(got), size, err)
				}
			}
			if size, err := s.Size(t.Context(), key); err != nil || size != int64(c.size) {
				t.Errorf("size %d, %v", size, err)
			}
			if err := s.Probe(t.Context()); err != nil {
				t.Error(err)
			}
			if err := s.Delete(t.Context(), key); err != nil || len(server.objects) != 0 || len(server.refused) != 0 {
				t.Errorf("%v, left %d, refused %q", err, len(server.objects), server.refused)
			}
		})
	}
}

// The parameter brings the SDK's own checksums back, which is also how it is known that the fake refuses them.
func TestS3_ChecksumsAreAParameter(t *testing.T) {
	t.Parallel()
	server := newOldStore(t)
	err := server.open(t, "&request_checksum_calculation=when_supported").Probe(t.Context())
	if err == nil || len(server.refused) == 0 {
		t.Errorf("%v, refused %q", err, server.refused)
	}
	if want := "the store answers a small write and its deletion with the error NotImplemented: "; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
	s := server.open(t, "&response_checksum_validation=when_supported")
	if err := s.Write(t.Context(), space, 1, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Read(t.Context(), space, 0); err == nil {
		t.Error("the read did not ask for a checksum")
	}
}

// Planted: a HEAD before the DELETE.
func TestS3_DeleteIsOneRequest(t *testing.T) {
	t.Parallel()
	server := newOldStore(t)
	s := server.open(t, "")
	for _, exists := range []bool{true, false} {
		if exists {
			if err := s.Write(t.Context(), space, 1, strings.NewReader("x")); err != nil {
				t.Fatal(err)
			}
		}
		server.requests = nil
		if err := s.Delete(t.Context(), space); err != nil {
			t.Error(err)
		}
		if want := []string{"DELETE /bucket/" + s.objectName(space)}; !slices.Equal(server.requests, want) {
			t.Errorf("object there %v: %q, want %q", exists, server.requests, want)
		}
	}
}

// counted counts what was read of it.
type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// Of content that can be read once only no more than a part is in memory, and none is made longer than its
// size. Planted: all of it read before the first request; the end not looked at.
func TestS3_ContentIsReadAPartAtATime(t *testing.T) {
	t.Parallel()
	server := newOldStore(t)
	const size = 4 * onceBytes
	content := &counted{r: io.LimitReader(zeros{}, size)}
	var most int64
	server.fail = func(*http.Request) (int, string) {
		most = max(most, content.n-server.received)
		return 0, ""
	}
	if err := server.open(t, "").Write(t.Context(), space, size, content); err != nil {
		t.Fatal(err)
	}
	if most > onceBytes {
		t.Errorf("%d bytes were read ahead, want at most %d", most, onceBytes)
	}
	for name, length := range map[string]int64{"shorter": size - 1, "longer": size + 1} {
		server := newOldStore(t)
		err := server.open(t, "").Write(t.Context(), space, size, once{io.LimitReader(zeros{}, length)})
		if !errors.Is(err, errLength) || len(server.objects)+len(server.parts) != 0 {
			t.Errorf("%s: %v, %d objects, %d unfinished", name, err, len(server.objects), len(server.parts))
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// Planted: a missing bucket taken for a missing object, for which files would be given up.
func TestS3_MissingBucketIsNotAMissingObject(t *testing.T) {
	t.Parallel()
	server := newOldStore(t)
	s := server.open(t, "")
	if _, _, err := s.Read(t.Context(), space, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := s.Size(t.Context(), space); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	server.fail = func(*http.Request) (int, string) { return http.StatusNotFound, "NoSuchBucket" }
	if _, _, err := s.Read(t.Context(), space, 0); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), space); err == nil {
		t.Error("deleted in a bucket that is not there")
	}
}

// A store that ignores ranges would otherwise give the start of an object for its end. Planted: that.
func TestS3_IgnoredRangeIsAnError(t *testing.T) {
	t.Parallel()
	server := newOldStore(t)
	s := server.open(t, "")
	if err := s.Write(t.Context(), space, 5, strings.NewReader("hello")); err != nil {
		t.Fatal(err)
	}
	server.fail = func(r *http.Request) (int, string) {
		r.Header.Del("Range")
		return 0, ""
	}
	if r, _, err := s.Read(t.Context(), space, 2); err == nil {
		got, _ := io.ReadAll(r)
		t.Errorf("read %q", got)
	}
}

// What stops the start names the credentials only if the store did. Planted: one sentence for all.
func TestS3_ProbeSaysWhatTheStoreSaid(t *testing.T) {
	t.Parallel()
	for code, c := range map[string]struct {
		status int
		want   string
	}{
		"AccessDenied":                 {403, "the store denies these credentials the access; allow them to write, read, list and delete objects in the bucket bucket: "},
		"InvalidAccessKeyId":           {403, "the store does not know the access key; check AWS_ACCESS_KEY_ID: "},
		"SignatureDoesNotMatch":        {403, "the store does not accept the signature; check AWS_SECRET_ACCESS_KEY, "},
		"ExpiredToken":                 {400, "the store does not accept the session token of the credentials; renew AWS_SESSION_TOKEN: "},
		"RequestTimeTooSkewed":         {403, "the clocks of this machine and of the store differ by too much: "},
		"NoSuchBucket":                 {404, "there is no bucket bucket; create it, or correct the URL: "},
		"AuthorizationHeaderMalformed": {400, "the bucket bucket is not in the region us-east-1; set the URL's parameter region: "},
		"XAmzContentSHA256Mismatch":    {400, "the store answers a small write and its deletion with the error XAmzContentSHA256Mismatch: "},
	} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			server := newOldStore(t)
			server.fail = func(*http.Request) (int, string) { return c.status, code }
			err := server.open(t, "").Probe(t.Context())
			if err == nil || !strings.HasPrefix(err.Error(), c.want) || !strings.Contains(err.Error(), "what the store says") {
				t.Errorf("%v, want %q", err, c.want)
			}
			blamed := err != nil && (strings.Contains(err.Error(), "credentials") || strings.Contains(err.Error(), "AWS_"))
			if about := slices.Contains([]string{"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}, code); blamed != about {
				t.Errorf("the credentials are blamed: %v; %v", blamed, err)
			}
		})
	}
	server := newOldStore(t)
	s := server.open(t, "")
	server.Close()
	if err := s.Probe(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "the store cannot be reached: ") {
		t.Error(err)
	}
}

// These change the environment, so they are not parallel.
func TestS3_ProbeSaysWhatIsMissingHere(t *testing.T) {
	server := newOldStore(t)
	probe := func() string {
		err := server.open(t, "").Probe(t.Context())
		if err == nil {
			return ""
		}
		return err.Error()
	}
	t.Run("trust", func(t *testing.T) {
		t.Setenv("AWS_CA_BUNDLE", "")
		if got := probe(); !strings.HasPrefix(got, "the certificate of the store is not trusted; AWS_CA_BUNDLE takes the file of its authority: ") {
			t.Error(got)
		}
	})
	t.Run("credentials", func(t *testing.T) {
		t.Setenv("AWS_ACCESS_KEY_ID", "")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "")
		t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
		if got := probe(); !strings.HasPrefix(got, "there are no credentials for the store; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ") {
			t.Error(got)
		}
	})
	t.Run("region", func(t *testing.T) {
		t.Setenv("AWS_REGION", "")
		t.Setenv("AWS_DEFAULT_REGION", "")
		if _, err := Open(t.Context(), "s3://bucket", space); err == nil || !strings.Contains(err.Error(), "add ?region=... to the URL, or set AWS_REGION") {
			t.Error(err)
		}
	})
}

// All parameters that STORAGE_URL may have are taken. Planted: one forgotten; a wrong value taken.
func TestOpen_ParametersOfABucket(t *testing.T) {
	t.Parallel()
	for _, parameters := range []string{
		"region=eu-central-1&kmskeyid=alias&ssetype=aws:kms&prefix=a/&use_path_style=false",
		"endpoint=https://storage.googleapis.com&request_checksum_calculation=when_required&response_checksum_validation=when_required",
	} {
		if _, err := Open(t.Context(), "s3://bucket?"+parameters, space); err != nil {
			t.Errorf("%s: %v", parameters, err)
		}
	}
	for url, want := range map[string]string{
		"s3://bucket?region=a&regoin=b":                    `the parameter "regoin", which is not known`,
		"s3://bucket?region=a&use_path_style=perhaps":      "not true or false",
		"s3://bucket?request_checksum_calculation=never":   "not when_supported or when_required",
		"s3://bucket?response_checksum_validation=never":   "not when_supported or when_required",
		"s3://bucket?region=a&profile=there-is-no-profile": "there-is-no-profile",
		"gs://bucket": "gs:// is not supported; use s3:// or file://",
		"%":           "cannot be read",
	} {
		if _, err := Open(t.Context(), url, space); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
}
