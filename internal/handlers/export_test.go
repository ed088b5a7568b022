package handlers

import "time"

// SetIntervals sets how often a stream sends a heartbeat and checks its token.
func (h *EventsHandler) SetIntervals(heartbeat, recheck time.Duration) {
	h.intervals.heartbeat, h.intervals.recheck = heartbeat, recheck
}
