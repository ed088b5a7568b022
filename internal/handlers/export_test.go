package handlers

import "time"

// SetIntervals sets how often a stream polls, sends a heartbeat and checks its token.
func (h *EventsHandler) SetIntervals(poll, heartbeat, recheck time.Duration) {
	h.intervals.poll, h.intervals.heartbeat, h.intervals.recheck = poll, heartbeat, recheck
}
