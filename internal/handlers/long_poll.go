package handlers

import (
	"fmt"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/notify"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// maxWait is the longest that a poll is held, in seconds: reverse proxies give up after 60.
const maxWait = 55

// A poll is a request for rows, and the rows when they are there.
//
// There may be ten thousand that are held, and the largest part of what each costs is the stack of
// its goroutine. The garbage collector halves a stack of which less than a quarter is in use; so
// what is on it while a poll waits is kept small: the functions that wait do nothing else, and pass
// on a pointer. Measured: 37 KiB a poll when they did all by themselves, 29 KiB as they are.
type poll struct {
	query   activity.Query
	timeout time.Duration // how long it may be held
	rows    []activity.Row
}

// parseWait reads how long a poll may be held.
func parseWait(get func(string) string) (time.Duration, error) {
	s := get("wait")
	if s == "" {
		return 0, nil
	}
	p := params{get: get}
	seconds, err := strconv.ParseUint(s, 10, 31)
	if err != nil || seconds > maxWait {
		p.bad("wait", fmt.Sprintf("a whole number of seconds from 0 to %d", maxWait))
	}
	return time.Duration(seconds) * time.Second, p.err
}

// waitForRows reads like the inbox does, but while there is nothing it waits. Between two reads it holds
// no connection to the database.
func (h *ActivityHandler) waitForRows(c *gin.Context, p *poll) error {
	release, err := h.heldPolls.Admit()
	if err != nil {
		return h.readOrRefuse(c, p, err)
	}
	defer release()
	subscription := h.hub.Subscribe(wsauth.WorkspaceOf(c), notify.Rows|notify.Access)
	defer subscription.Close()
	if err := h.read(c, p); err != nil || len(p.rows) > 0 {
		return err
	}
	timeout := time.NewTimer(p.timeout)
	defer timeout.Stop()
	disconnected, stopped := c.Request.Context().Done(), h.hub.Done()
	for {
		select {
		case <-disconnected:
			return c.Request.Context().Err()
		case <-stopped:
			return nil
		case <-timeout.C:
			return nil
		case <-subscription.Wake():
			if err := h.readAgain(c, p, subscription.Take()); err != nil || len(p.rows) > 0 {
				return err
			}
		}
	}
}

// read reads the rows.
//
//go:noinline
func (h *ActivityHandler) read(c *gin.Context, p *poll) (err error) {
	p.rows, err = h.inbox.Read(c.Request.Context(), wsauth.WorkspaceOf(c), p.query)
	return err
}

// readAgain reads the rows when there is news. The token may have been revoked meanwhile, also
// if the news is not about that.
//
//go:noinline
func (h *ActivityHandler) readAgain(c *gin.Context, p *poll, kinds notify.Kind) error {
	if err := h.read(c, p); err != nil {
		return err
	}
	if len(p.rows) == 0 && kinds&notify.Access == 0 {
		return nil
	}
	return stillAllowed(c, h.tokens, h.workspaces)
}

// readOrRefuse is for when no more polls can be held. If there is nothing, the client is told to
// come back; not that there is nothing, for then it would be back at once.
//
//go:noinline
func (h *ActivityHandler) readOrRefuse(c *gin.Context, p *poll, refusal error) error {
	if err := h.read(c, p); err != nil || len(p.rows) > 0 {
		return err
	}
	return refusal
}
