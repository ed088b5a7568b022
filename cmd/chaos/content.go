//go:build linux

package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
)

const (
	maxParts = 8
	largest  = 3 << 20 // maximum size of a file, in bytes

	// stampedFrom is the size from which a content contains the part's name, and is unique.
	stampedFrom = 16
)

// A part is a file of an upload. Its content is generated from the seed whenever it is needed.
type part struct {
	name   string
	size   int64
	seed   uint64
	sha256 string
}

// newPart generates a file of a random size. Some sizes are boundaries: empty, and around the chunks of 1 MiB in which
// files are stored.
func newPart(rng *rand.Rand, name string) part {
	p := part{name: name, seed: rng.Uint64()}
	switch rng.IntN(20) {
	case 0:
		edges := []int64{0, 1, 1<<20 - 1, 1 << 20, 1<<20 + 1, 2 << 20}
		p.size = edges[rng.IntN(len(edges))]
	default:
		p.size = int64(math.Pow(largest, rng.Float64()))
	}
	sum := sha256.Sum256(p.content())
	p.sha256 = hex.EncodeToString(sum[:])
	return p
}

// content is the part's name, if it fits, and then random bytes.
func (p part) content() []byte {
	data := make([]byte, p.size)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], p.seed)
	_, _ = rand.NewChaCha8(key).Read(data) // never fails
	if p.size >= stampedFrom {
		copy(data, p.name+"\n")
	}
	return data
}

// partName is unique in a run. It encodes the workspace, the upload and the position in it.
func partName(workspace, upload, place int) string {
	return fmt.Sprintf("w%d-u%d-f%d.bin", workspace, upload, place)
}

// parsePartName is the inverse of partName.
func parsePartName(name string) (workspace, upload, place int, ok bool) {
	n, err := fmt.Sscanf(name, "w%d-u%d-f%d.bin", &workspace, &upload, &place)
	return workspace, upload, place, n == 3 && err == nil && name == partName(workspace, upload, place)
}
