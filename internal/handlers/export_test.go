package handlers

import "time"

// SetPace makes a stream look, beat and check that often.
func (h *EventsHandler) SetPace(look, heartbeat, recheck time.Duration) {
	h.pace.look, h.pace.heartbeat, h.pace.recheck = look, heartbeat, recheck
}
