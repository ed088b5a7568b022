package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
)

// A cost is the processor time of one operation, in milliseconds.
type cost struct {
	Platform float64 `json:"platform_ms"`
	Postgres float64 `json:"postgres_ms"`
}

// costs are the costs of all operations of the model.
type costs struct {
	Source     string `json:"source"`
	Upload     cost   `json:"upload"`     // of a file of 100 KiB
	UploadMiB  cost   `json:"upload_mib"` // of each further MiB
	Fetch      cost   `json:"fetch"`
	FetchMiB   cost   `json:"fetch_mib"`
	Ack        cost   `json:"ack"`
	Poll       cost   `json:"poll"`      // that returns nothing
	Heartbeat  cost   `json:"heartbeat"` // not measured: assumed equal to an ack, also an UPDATE by key
	InboxCheck cost   `json:"look"`      // internal/notify's query for 500 workspaces; not measured
}

//go:embed costs.json
var saved []byte

func savedCosts() (c costs, err error) { return c, json.Unmarshal(saved, &c) }

// The cases of the benchmark that are used, and the bytes of their operations.
const (
	smallBytes = 100 << 10
	largeBytes = 5 << 20
	mib        = 1 << 20

	caseUpload, caseUploadLarge = "upload 100 KiB × 8", "upload 5 MiB × 8"
	caseFetch, caseFetchLarge   = "content 100 KiB × 8", "content 5 MiB × 8"
	caseAck                     = "ack 100 KiB × 8"
	casePoll                    = "empty poll × 8"
)

// benchmark is the part of the output of `make bench` that is used.
type benchmark struct {
	Cases []struct {
		Case     string `json:"case"`
		Platform []struct {
			Operations int     `json:"operations"`
			PlatformS  float64 `json:"platform_cpu_s"`
			PostgresS  float64 `json:"postgres_cpu_s"`
		} `json:"platform"`
	} `json:"cases"`
}

// readBenchmark returns c with the costs that a benchmark measured.
func (c costs) readBenchmark(path string) (costs, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("scaling: %w", err)
	}
	var b benchmark
	if err := json.Unmarshal(text, &b); err != nil {
		return c, fmt.Errorf("scaling: read %s: %w", path, err)
	}
	var missing []error
	measured := func(name string) cost {
		found, ok := b.cost(name)
		if !ok {
			missing = append(missing, fmt.Errorf("scaling: %s has no case %q", path, name))
		}
		return found
	}
	c.Source = "make bench"
	c.Upload, c.UploadMiB = split(measured(caseUpload), measured(caseUploadLarge))
	c.Fetch, c.FetchMiB = split(measured(caseFetch), measured(caseFetchLarge))
	c.Ack, c.Poll = measured(caseAck), measured(casePoll)
	c.Heartbeat = c.Ack
	return c, errors.Join(missing...)
}

// cost returns the median over the rounds of a case; false if there is no such case.
func (b benchmark) cost(name string) (cost, bool) {
	for _, found := range b.Cases {
		if found.Case != name || len(found.Platform) == 0 {
			continue
		}
		var platform, postgres []float64
		for _, round := range found.Platform {
			n := float64(max(round.Operations, 1))
			platform, postgres = append(platform, 1000*round.PlatformS/n), append(postgres, 1000*round.PostgresS/n)
		}
		slices.Sort(platform)
		slices.Sort(postgres)
		return cost{platform[len(platform)/2], postgres[len(postgres)/2]}, true
	}
	return cost{}, false
}

// split returns the cost of a small operation, and that of each further MiB.
func split(small, large cost) (operation, perMiB cost) {
	const more = float64(largeBytes-smallBytes) / mib
	return small, cost{max(0, large.Platform-small.Platform) / more, max(0, large.Postgres-small.Postgres) / more}
}

// forBytes returns the cost of a transfer of so many bytes.
func (c cost) forBytes(perMiB cost, bytes float64) cost {
	more := max(0, bytes-smallBytes) / mib
	return cost{c.Platform + more*perMiB.Platform, c.Postgres + more*perMiB.Postgres}
}
