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

// maxWait is the maximum of wait in seconds: reverse proxies commonly time out after 60 s.
const maxWait = 55

// A poll is a request for rows, and its result.
//
// Ten thousand polls may be held, and most of the memory of each is the stack of its goroutine. The garbage
// collector halves a stack of which less than a quarter is in use, so the frames on it while a poll waits are
// kept small: the functions that wait do nothing else, pass a pointer, and call functions that are not
// inlined. Measured: 29 KiB a poll, 37 KiB with everything in one function.
type poll struct {
	query   activity.Query
	timeout time.Duration // the longest time that it is held
	rows    []activity.Row
}

// parseWait parses the parameter wait.
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

// waitForRows reads rows, and waits for a notification while there are none. It holds no database connection
// while it waits. After the timeout, or when the platform stops, the result has no rows.
func (h *ActivityHandler) waitForRows(c *gin.Context, p *poll) error {
	release, err := admit(c, h.heldPolls)
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
func (h *ActivityHandler) read(c *gin.Context, p *poll) error {
	workspace := wsauth.WorkspaceOf(c)
	return connected(c.Request.Context(), c, workspace, func() (err error) {
		p.rows, err = h.inbox.Read(c.Request.Context(), workspace, p.query)
		return err
	})
}

// readAgain reads the rows after a notification. It authenticates again before rows are returned, because the
// token may have been revoked while the poll was held.
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

// readOrRefuse is for a poll that cannot be held. It returns the 503 if there are no rows: an empty page
// would make the client poll again at once.
//
//go:noinline
func (h *ActivityHandler) readOrRefuse(c *gin.Context, p *poll, refusal error) error {
	if err := h.read(c, p); err != nil || len(p.rows) > 0 {
		return err
	}
	return refusal
}
