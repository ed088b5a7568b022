package wsauth

import (
	"crypto/sha256"
	"sync"
)

// seenTokens is how many tokens a generation of the set remembers, 40 bytes or so each.
const seenTokens = 8192

// seen is the set of the tokens that were valid when they were looked up last, by hash. It forgets those that were not
// used for long. It decides nothing but which look-ups wait for others.
type seen struct {
	mu         sync.Mutex
	young, old map[[sha256.Size]byte]struct{}
}

func (s *seen) has(hash [sha256.Size]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, young := s.young[hash]
	_, old := s.old[hash]
	return young || old
}

func (s *seen) add(hash [sha256.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.young == nil || len(s.young) >= seenTokens {
		s.young, s.old = make(map[[sha256.Size]byte]struct{}), s.young
	}
	s.young[hash] = struct{}{}
}

func (s *seen) remove(hash [sha256.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.young, hash)
	delete(s.old, hash)
}
