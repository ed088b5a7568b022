package notify

import (
	"context"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
)

// takeKinds returns the kinds of the changes since the last call, 0 without a wake-up.
func takeKinds(s *Subscription) Kind {
	select {
	case <-s.Wake():
		return s.Take()
	default:
		return 0
	}
}

// watchCount returns how many workspaces the hub watches.
func watchCount(h *Hub) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.watches)
}

// Planted: wake ignores the kinds; wakes the subscriptions of all workspaces.
func TestHub_WakesMatchingSubscriptions(t *testing.T) {
	t.Parallel()
	h := New(Options{})
	here, there := uuid.New(), uuid.New()
	rows, both, elsewhere := h.Subscribe(here, Rows), h.Subscribe(here, Rows|Receipts), h.Subscribe(there, allKinds)
	h.Publish(here, Receipts)
	if takeKinds(rows) != 0 || takeKinds(both) != Receipts || takeKinds(elsewhere) != 0 {
		t.Error("receipts: the wrong subscriptions were woken")
	}
	h.Publish(here, Rows)
	h.Publish(here, Receipts)
	h.Publish(here, Rows)
	if takeKinds(rows) != Rows || takeKinds(both) != Rows|Receipts || takeKinds(elsewhere) != 0 {
		t.Error("rows and receipts: the wrong subscriptions were woken")
	}
	if takeKinds(rows) != 0 || takeKinds(both) != 0 {
		t.Error("a change woke a subscription twice")
	}
	h.Publish(uuid.New(), allKinds) // no subscriptions
	for _, w := range []*Subscription{rows, both, elsewhere} {
		w.Close()
	}
	h.Publish(here, Rows)
	if takeKinds(rows) != 0 || h.Subscriptions() != 0 || watchCount(h) != 0 {
		t.Errorf("%d subscriptions and %d watches after all were closed", h.Subscriptions(), watchCount(h))
	}
}

func TestHub_CloseEndsAllSubscriptions(t *testing.T) {
	t.Parallel()
	h := New(Options{})
	var wg sync.WaitGroup
	for range 1000 {
		w := h.Subscribe(uuid.New(), Rows)
		wg.Go(func() {
			defer w.Close()
			select {
			case <-w.Wake():
			case <-h.Done():
			}
		})
	}
	h.Close()
	h.Close() // a second Close does nothing
	wg.Wait()
	if h.Subscriptions() != 0 {
		t.Errorf("%d subscriptions are left", h.Subscriptions())
	}
	select {
	case <-h.Done():
	default:
		t.Error("Done is not closed for later subscriptions")
	}
}

// Handlers in tests have no hub.
func TestHub_NilIgnoresPublish(t *testing.T) {
	t.Parallel()
	(*Hub)(nil).Publish(uuid.New(), Rows)
}

func TestFormatPayloads_CarryAllEntriesWithinTheLimit(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, maxEntries - 1, maxEntries, maxEntries + 1, 3*maxEntries + 7} {
		id, sent, got := newID(), map[uuid.UUID]Kind{}, map[uuid.UUID]Kind{}
		for i := range n {
			sent[uuid.New()] = 1 + Kind(i)%allKinds
		}
		all := formatPayloads(id, sent)
		for _, p := range all {
			if len(p) >= 8000 {
				t.Errorf("%d items: a payload of %d bytes", n, len(p))
			}
			if from := parsePayload(p, func(w uuid.UUID, k Kind) { got[w] |= k }); from != id {
				t.Errorf("from %q, want %q", from, id)
			}
		}
		if len(got) != n || len(all) != max(1, (n+maxEntries-1)/maxEntries) {
			t.Errorf("%d items: %d arrived in %d payloads", n, len(got), len(all))
		}
		for w, k := range sent {
			if got[w] != k {
				t.Fatalf("%d items: %d arrived as %d", n, k, got[w])
			}
		}
	}
}

// Any client of the database may write to the channel.
func TestParsePayload_IgnoresUnknownFormats(t *testing.T) {
	t.Parallel()
	good := formatPayloads("AAAAAAAA", map[uuid.UUID]Kind{uuid.New(): Rows})[0]
	for _, bad := range []string{
		"", "1", "hello", "2" + good[1:], good[:len(good)-1], good + "x", good[:headerChars] + strings.Repeat("!", entryChars),
		good[:len(good)-1] + "9", good[:len(good)-1] + "\x00", strings.Repeat("\xff", 8000),
	} {
		parsePayload(bad, func(w uuid.UUID, k Kind) { t.Errorf("%q: %s, %d", bad, w, k) })
	}
}

// fakeInbox has a newest row number for each workspace, and counts the queries.
type fakeInbox struct {
	mu      sync.Mutex
	newest  map[uuid.UUID]int64
	queries int
}

func (r *fakeInbox) Newest(_ context.Context, workspaces []uuid.UUID) (map[uuid.UUID]int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queries++
	found := map[uuid.UUID]int64{}
	for _, id := range workspaces {
		if n, ok := r.newest[id]; ok {
			found[id] = n
		}
	}
	return found, nil
}

func (r *fakeInbox) add(id uuid.UUID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.newest[id]++
}

// count returns the number of queries since the last call.
func (r *fakeInbox) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.queries
	r.queries = 0
	return n
}

// A row without a notification wakes its subscriber within Interval. 10,000 subscriptions cost a few
// queries, and are not woken without a change. Planted: no polling; a watch dropped as soon as it is
// empty, so that each new subscription is woken once without a change.
func TestHub_PollFindsUnpublishedRows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const waiting = 10_000
		r := &fakeInbox{newest: map[uuid.UUID]int64{}}
		h := New(Options{Newest: r.Newest})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { h.Run(ctx); close(ended) }()
		waiters := make([]*Subscription, waiting)
		for i := range waiters {
			waiters[i] = h.Subscribe(uuid.New(), Rows)
		}
		time.Sleep(2 * Interval)
		woken := func() (n int) {
			for _, w := range waiters {
				if takeKinds(w) != 0 {
					n++
				}
			}
			return n
		}
		if n := woken(); n != waiting {
			t.Errorf("%d of %d were woken by the first poll", n, waiting)
		}
		// Clients poll again as soon as they are answered.
		for i, w := range waiters {
			w.Close()
			waiters[i] = h.Subscribe(w.workspace, Rows)
		}
		r.count()
		time.Sleep(time.Minute)
		if n, queries := woken(), r.count(); n != 0 || queries > 2*(waiting/pollBatchSize)*int(time.Minute/Interval)*5/4 {
			t.Errorf("%d were woken without a change, %d queries in a minute", n, queries)
		}
		for i := range 100 {
			w := waiters[i*97]
			r.add(w.workspace)
			start := time.Now()
			<-w.Wake()
			if took := time.Since(start); took > Interval {
				t.Errorf("woken after %v", took)
			}
			time.Sleep(time.Duration(i) * 37 * time.Millisecond)
		}
		for _, w := range waiters {
			w.Close()
		}
		time.Sleep(4 * Interval)
		if watchCount(h) != 0 {
			t.Errorf("%d watches are left without a subscription", watchCount(h))
		}
		stop()
		<-ended
	})
}

// fakeReceipts has a newest number for each workspace, and workspaces with unnumbered receipts.
type fakeReceipts struct {
	fakeInbox
	unnumbered map[uuid.UUID]bool
}

func (r *fakeReceipts) NewestReceipts(ctx context.Context, workspaces []uuid.UUID) (map[uuid.UUID]int64, map[uuid.UUID]bool, error) {
	newest, err := r.Newest(ctx, workspaces)
	r.mu.Lock()
	defer r.mu.Unlock()
	return newest, maps.Clone(r.unnumbered), err
}

func (r *fakeReceipts) setUnnumbered(id uuid.UUID, some bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unnumbered[id] = some
}

// Receipts without a notification wake their subscribers within Interval, and for as long as they have no number. Without a
// change nobody is woken, and where nobody subscribes to receipts they are not asked for. Planted: no poll of receipts; unnumbered
// ones not looked at; each poll waking; all workspaces asked for.
func TestHub_PollFindsUnpublishedReceipts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rows := &fakeInbox{newest: map[uuid.UUID]int64{}}
		receipts := &fakeReceipts{fakeInbox{newest: map[uuid.UUID]int64{}}, map[uuid.UUID]bool{}}
		h := New(Options{Newest: rows.Newest, NewestReceipts: receipts.NewestReceipts})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { h.Run(ctx); close(ended) }()
		poll := h.Subscribe(uuid.New(), Rows)
		time.Sleep(time.Minute)
		if n := receipts.count(); n != 0 {
			t.Errorf("receipts were asked for %d times by nobody", n)
		}
		stream := h.Subscribe(poll.workspace, Rows|Receipts)
		takeKinds(poll)
		time.Sleep(Interval)
		if got := takeKinds(stream); got != Receipts {
			t.Errorf("the first poll woke it for %v", got)
		}
		time.Sleep(time.Minute)
		if got := takeKinds(stream); got != 0 {
			t.Errorf("woken for %v without a change", got)
		}
		receipts.setUnnumbered(stream.workspace, true)
		for range 3 {
			time.Sleep(Interval)
			if got := takeKinds(stream); got != Receipts {
				t.Errorf("woken for %v, with receipts without a number", got)
			}
		}
		receipts.setUnnumbered(stream.workspace, false)
		receipts.add(stream.workspace)
		time.Sleep(Interval)
		if got := takeKinds(stream); got != Receipts {
			t.Errorf("woken for %v, with a new number", got)
		}
		time.Sleep(time.Minute)
		if got := takeKinds(stream) | takeKinds(poll); got != 0 {
			t.Errorf("woken for %v without a change", got)
		}
		poll.Close()
		stream.Close()
		stop()
		<-ended
	})
}
