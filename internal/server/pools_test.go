package server_test

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// With the smallest pools that the settings allow, everything still works: nothing holds a connection while it waits for
// another one of the same pool. Planted: reservations of large uploads through FileWrites.
func TestPools_TheSmallestCarryEverything(t *testing.T) {
	t.Parallel()
	dsn := pgtest.New(t)
	smallest := func(s *config.Settings) {
		s.DatabaseURL, s.DatabaseQueryConns, s.DatabaseFileConns, s.AckRetention, s.SweepInterval = dsn, "4", "2", "0s", "1s"
	}
	replicas := []*servertest.Platform{servertest.Start(t, smallest), servertest.Start(t, smallest)}
	var wg sync.WaitGroup
	for i := range 12 {
		w := replicas[i%2].Create(t, "poll", "")
		wg.Go(func() { useEverything(t, replicas[i%2], replicas[1-i%2], w, rand.New(rand.NewPCG(2, uint64(i)))) })
	}
	wg.Wait()
}
