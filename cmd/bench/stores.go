//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/google/uuid"
)

const (
	storeKey    = "bench"
	storeSecret = "bench-on-loopback"
	storeBucket = "bench"
)

// storeTargets are the targets of a folder compared with PostgreSQL.
var storeTargets = map[string]struct {
	ratio   float64
	targets map[string]float64
}{
	"upload 25 MiB × 8, file":  {ratio: 2},
	"upload 25 MiB × 32, file": {targets: map[string]float64{peakMiB: 96}},
}

// A store is a platform with an object store, whose files are on this disk.
type store struct {
	*platform
	name string
	dirs []string
}

// measureStores compares large files in a folder, and in S3 if o.s3 is set, with PostgreSQL, in the same rounds.
func (r *report) measureStores(ctx context.Context, o options, s *stack, p *platform) (err error) {
	r.limit = "PostgreSQL"
	folder := filepath.Join(filepath.Dir(s.dir), "objects")
	stores := []*store{{name: "file", dirs: []string{folder}}}
	urls := []string{"file://" + folder}
	if o.s3 != "" {
		root := filepath.Join(filepath.Dir(s.dir), "s3")
		url, stop, err := startS3(ctx, o.s3, root)
		if err != nil {
			return err
		}
		defer stop()
		stores = append(stores, &store{name: "S3", dirs: []string{filepath.Join(root, "data", storeBucket), filepath.Join(root, "sidecar", storeBucket)}})
		urls = append(urls, url)
	}
	for i, x := range stores {
		if x.platform, err = s.startPlatform(ctx, o.binary, "store_"+x.name, "STORAGE_URL="+urls[i],
			"AWS_ACCESS_KEY_ID="+storeKey, "AWS_SECRET_ACCESS_KEY="+storeSecret); err != nil {
			return err
		}
	}
	cases := storeCases()
	var chosen []benchCase
	for _, c := range cases {
		if o.only.MatchString(c.name) {
			chosen = append(chosen, c)
		}
	}
	findings := map[string]*caseResult{}
	for _, c := range chosen {
		for _, x := range stores {
			name := c.name + ", " + x.name
			findings[name] = &caseResult{Case: name, Bytes: c.bytes, target: storeTargets[name].ratio, targets: storeTargets[name].targets}
			r.Findings = append(r.Findings, findings[name])
		}
	}
	for round := range o.rounds {
		for i := range chosen {
			c := &chosen[i]
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, o.rounds, c.name)
			var beside []result
			if err := c.run(ctx, o, s, p, &beside, nil); err != nil {
				return err
			}
			for _, x := range stores {
				f := findings[c.name+", "+x.name]
				if err := c.run(ctx, o, s, x.platform, &f.Platform, nil); err != nil {
					return err
				}
				f.Limit = append(f.Limit, beside...)
				if err := x.empty(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// empty deletes the objects, whose rows are already deleted.
func (x *store) empty() error {
	for _, dir := range x.dirs {
		entries, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if err := os.RemoveAll(entry); err != nil {
				return err
			}
		}
	}
	return nil
}

// storeCases are uploads and downloads of large files. The files to download are uploaded through the platform, because
// there is no other way to put them into a store.
func storeCases() []benchCase {
	s := caseSet{data: make([]byte, 100*mib)}
	for i := range s.data {
		s.data[i] = byte(i * i >> 7)
	}
	var cases []benchCase
	for _, size := range []int{25 * mib, 100 * mib} {
		for _, workers := range []int{1, 8, 32} {
			if size == 100*mib && workers == 32 {
				continue
			}
			up := s.uploadCase(size, workers)
			up.target, up.targets, up.limit = 0, nil, nil
			up.fresh = true
			cases = append(cases, up)
		}
		cases = append(cases, s.storedContentCase(size))
	}
	return cases
}

func (s caseSet) storedContentCase(size int) benchCase {
	fixtures := map[*platform]*fixture{}
	const files = 2
	return benchCase{
		name: fmt.Sprintf("content %s × 8", formatSize(size)), workers: 8, bytes: size, cleanup: empty, fresh: true,
		prepare: func(ctx context.Context, p *platform) error {
			if err := empty(ctx, p); err != nil {
				return err
			}
			w := &fixture{}
			fixtures[p] = w
			var err error
			if w.workspaces, err = p.addWorkspaces(ctx, 1); err != nil {
				return err
			}
			for range files {
				if err := p.upload(ctx, w.workspaces[0], s.data[:size]); err != nil {
					return err
				}
			}
			rows, err := p.db.QueryContext(ctx, `SELECT file_id FROM pending_uploads`)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var id uuid.UUID
				if err := rows.Scan(&id); err != nil {
					return err
				}
				w.files = append(w.files, id)
			}
			return rows.Err()
		},
		platform: func(ctx context.Context, p *platform, _, item int, x *sample) error {
			w := fixtures[p]
			return p.content(ctx, w.workspaces[0], w.files[item%files], int64(size), x)
		},
	}
}

// startS3 starts an S3 server on a folder, with a bucket, and returns the bucket's URL.
func startS3(ctx context.Context, binary, root string) (url string, stop func(), err error) {
	for _, dir := range []string{"data/" + storeBucket, "sidecar"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return "", nil, err
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr := listener.Addr().String()
	if err := listener.Close(); err != nil {
		return "", nil, err
	}
	cmd := exec.Command(binary, "--port", addr, "--access", storeKey, "--secret", storeSecret, "--quiet", "--keep-alive",
		"posix", "--sidecar", filepath.Join(root, "sidecar"), filepath.Join(root, "data"))
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("start the S3 server: %w", err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	for deadline := time.Now().Add(startLimit); ; {
		response, err := http.Get("http://" + addr) // answers at once or fails
		if err == nil {
			_ = response.Body.Close()
			return "s3://" + storeBucket + "?endpoint=http://" + addr, stop, nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			stop()
			return "", nil, errors.Join(err, ctx.Err())
		}
		time.Sleep(20 * time.Millisecond)
	}
}
