//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/molecule-ai/platform/internal/testcluster"
)

// A balancer is HAProxy in front of all platforms, behind a proxy that can cut off clients.
type balancer struct {
	haproxy *testcluster.HAProxy
	clients *proxy
	log     *os.File
}

func startBalancer(config, dir string, platforms []*platform) (*balancer, error) {
	log, err := os.Create(filepath.Join(dir, "haproxy.log"))
	if err != nil {
		return nil, err
	}
	b := &balancer{log: log}
	var servers []string
	for _, p := range platforms {
		servers = append(servers, p.addr)
	}
	if b.haproxy, err = testcluster.StartHAProxy(config, dir, "", servers, log); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if b.clients, err = newProxy("tcp", b.haproxy.Addr); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// awaitAll returns when every platform is ready and HAProxy sends it requests.
func (b *balancer) awaitAll(platforms []*platform) error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	for i, p := range platforms {
		if err := awaitReady(p); err != nil {
			return err
		}
		if err := b.haproxy.Await(ctx, fmt.Sprintf("replica%d", i+1), testcluster.Up); err != nil {
			return err
		}
	}
	return nil
}

func (b *balancer) close() error {
	if b.clients != nil {
		b.clients.close()
	}
	return errors.Join(b.haproxy.Close(), b.log.Close())
}

// builds are the two binaries between which platforms are rolled; they may be the same. A run starts with the old one.
type builds struct {
	paths    [2]string // old, new
	present  int       // index of the running one
	migrated bool      // the schema is the new one's
}

// roll replaces the platforms one after the other by the other build. Before the first roll, the new build migrates the
// schema. Each platform must get requests from HAProxy again before the next one is replaced.
func (f *faults) roll(_ context.Context, _ []*platform) (time.Time, error) {
	next := 1 - f.builds.present
	if next == 1 && !f.builds.migrated {
		f.builds.migrated = true
		f.platforms[0].use(f.builds.paths[next])
		if err := f.platforms[0].run("migrate", "up"); err != nil {
			return time.Time{}, err
		}
	}
	for _, p := range f.platforms {
		if err := p.stop(); err != nil {
			f.history.problem(unexpected, "%v", err)
		}
		p.use(f.builds.paths[next])
		if err := p.start(); err != nil {
			return time.Time{}, err
		}
		if err := f.balancer.awaitAll(f.platforms); err != nil {
			return time.Time{}, err
		}
	}
	f.builds.present = next
	return time.Now(), nil
}

// topology describes the run's set-up for the report.
func (r *run) topology() string {
	if r.balancer == nil {
		return ""
	}
	if r.old == "" {
		return " behind HAProxy"
	}
	return " behind HAProxy, rolled between two builds"
}

// target is the make target that repeats the run.
func (o options) target() string {
	if o.haproxy == "" {
		return "chaos"
	}
	return "chaos-cluster"
}
