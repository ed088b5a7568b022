// Package s3test gives tests buckets on a real S3 server, a process of its own on loopback.
//
// It is versitygw on a temporary folder, which `make setup-test` installs into bin/; without it
// tests fail. The server of a test binary ends with it, however that ends. Its credentials are put
// into this process's environment, where the SDK looks for them.
package s3test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/molecule-ai/platform/internal/testcluster"
)

// AccessKey and Secret are the credentials of every server, until its own are changed.
const (
	AccessKey = "test-access"
	Secret    = "test-secret-of-loopback"
	region    = "us-east-1"
	patience  = 20 * time.Second
)

// Environment is what a process needs to use the buckets.
var Environment = []string{"AWS_ACCESS_KEY_ID=" + AccessKey, "AWS_SECRET_ACCESS_KEY=" + Secret, "AWS_REGION=" + region, "AWS_EC2_METADATA_DISABLED=true"}

// keeper runs server $2... with the folder $1 until this process is gone, which closes its
// standard input; then it ends the server and removes the folder.
const keeper = `
dir=$1; shift
"$@" >"$dir/log" 2>&1 3<&- &
echo $!
read -r order
kill -KILL $! 2>/dev/null
wait $! 2>/dev/null
[ "$order" = stop ] || rm -rf "$dir"`

var (
	shared  = sync.OnceValues(func() (*Server, error) { return launch() })
	setOnce sync.Once
	serial  atomic.Int64
)

// A Server is an S3 server.
type Server struct {
	URL string // such as http://127.0.0.1:41234

	dir, address, secret string
	leash                io.WriteCloser
	keeper               *exec.Cmd
}

// Shared returns the server that all tests of the binary may use, but not stop.
func Shared(t testing.TB) *Server {
	t.Helper()
	s, err := shared()
	if err != nil {
		t.Fatalf("s3test: %v", err)
	}
	return s
}

// Start returns a server of the test's own.
func Start(t testing.TB) *Server {
	t.Helper()
	s, err := launch()
	if err != nil {
		t.Fatalf("s3test: %v", err)
	}
	t.Cleanup(func() {
		s.Stop()
		_ = os.RemoveAll(s.dir)
	})
	return s
}

// BucketURL makes a bucket on the shared server and returns the URL of it that STORAGE_URL takes.
func BucketURL(t testing.TB) string {
	t.Helper()
	s := Shared(t)
	return s.BucketURL(t, s.URL)
}

// BucketURL makes a bucket and returns its URL, with endpoint, which is the server's or one that
// leads to it.
func (s *Server) BucketURL(t testing.TB, endpoint string) string {
	t.Helper()
	name := fmt.Sprintf("bucket-%d", serial.Add(1))
	if _, err := s.Client().CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("s3test: create %s: %v", name, err)
	}
	return "s3://" + name + "?endpoint=" + endpoint
}

// Client is a client with the credentials of the server.
func (s *Server) Client() *s3.Client {
	return s3.New(s3.Options{
		Region: region, BaseEndpoint: aws.String(s.URL), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(AccessKey, s.secret, ""),
	})
}

// Stop ends the server as a crash does. What it has stored stays.
func (s *Server) Stop() {
	if s.keeper == nil {
		return
	}
	_, _ = io.WriteString(s.leash, "stop\n")
	_ = s.leash.Close()
	_ = s.keeper.Wait()
	s.keeper = nil
}

// Restart starts it again on the same address, with another secret.
func (s *Server) Restart(t testing.TB, secret string) {
	t.Helper()
	s.Stop()
	s.secret = secret
	if err := s.start(); err != nil {
		t.Fatalf("s3test: %v", err)
	}
}

func launch() (*Server, error) {
	setOnce.Do(func() {
		for _, v := range Environment {
			name, value, _ := strings.Cut(v, "=")
			_ = os.Setenv(name, value) // a name without "=" and NUL cannot fail
		}
	})
	dir, err := os.MkdirTemp("", "s3test-")
	if err != nil {
		return nil, err
	}
	address, err := testcluster.FreeAddr() // also for its next life, see Restart
	if err != nil {
		return nil, err
	}
	s := &Server{URL: "http://" + address, address: address, dir: dir, secret: Secret}
	for _, name := range []string{"data", "sidecar"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return nil, err
		}
	}
	return s, s.start()
}

func (s *Server) start() error {
	binary, err := find()
	if err != nil {
		return err
	}
	s.keeper = exec.Command("/bin/sh", "-c", keeper, "sh", s.dir,
		binary, "--port", s.address, "--access", AccessKey, "--secret", s.secret, "--region", region, "--quiet", "--keep-alive",
		"posix", "--sidecar", filepath.Join(s.dir, "sidecar"), filepath.Join(s.dir, "data"))
	s.keeper.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir}
	s.keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C must not reach it
	if s.leash, err = s.keeper.StdinPipe(); err != nil {
		return err
	}
	if err := s.keeper.Start(); err != nil {
		return err
	}
	return s.await()
}

// await waits until the server answers.
func (s *Server) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultTransport.RoundTrip(request)
		if err == nil {
			return response.Body.Close()
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			return fmt.Errorf("the S3 server does not answer: %w\n%s", err, log)
		case <-again.C:
		}
	}
}

// find returns the server's binary, in bin/ beside go.mod.
func find() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod above the working folder")
		}
	}
	binary := filepath.Join(dir, "bin", "versitygw")
	if _, err := os.Stat(binary); err != nil {
		return "", fmt.Errorf("there is no S3 server to test with (%s); run `make setup-test`", binary)
	}
	return binary, nil
}
