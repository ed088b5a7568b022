package handlers

import "time"

// SetIntervals makes a stream look, beat and check that often.
func (h *EventsHandler) SetIntervals(poll, heartbeat, recheck time.Duration) {
	h.intervals.poll, h.intervals.heartbeat, h.intervals.recheck = poll, heartbeat, recheck
}
