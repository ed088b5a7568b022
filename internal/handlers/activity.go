package handlers

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/notify"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// defaultRows is the size of a page whose limit is no positive number.
const defaultRows = 100

// maxSinceSpan is the maximum of since_secs. Larger values are this one.
const maxSinceSpan = 30 * 24 * time.Hour

// rowOverheadBytes is the approximate memory of a row besides its bodies.
const rowOverheadBytes = 1 << 10

// ActivityHandler serves the inbox to pollers.
type ActivityHandler struct {
	workspaces *workspaces.Store
	tokens     *wsauth.Tokens
	inbox      *activity.Inbox
	hub        *notify.Hub
	heldPolls  *fairshare.Budget
}

// NewActivityHandler returns the handler. heldPolls bounds the polls that wait for rows.
func NewActivityHandler(
	store *workspaces.Store, tokens *wsauth.Tokens, inbox *activity.Inbox, hub *notify.Hub, heldPolls *fairshare.Budget,
) *ActivityHandler {
	return &ActivityHandler{workspaces: store, tokens: tokens, inbox: inbox, hub: hub, heldPolls: heldPolls}
}

// List answers with a page of the workspace's rows.
func (h *ActivityHandler) List(c *gin.Context) error {
	p, err := h.parse(c)
	if err != nil {
		return err
	}
	if p.timeout > 0 {
		err = h.waitForRows(c, p)
	} else {
		err = h.read(c, p)
	}
	if err != nil {
		return err
	}
	return renderRows(c, p.rows)
}

// parse reads the query, and checks that the workspace exists.
func (h *ActivityHandler) parse(c *gin.Context) (*poll, error) {
	q, err := parseActivityQuery(c.Query)
	if err != nil {
		return nil, err
	}
	timeout, err := parseWait(c.Query)
	if err != nil {
		return nil, err
	}
	if err := requireExistingWorkspace(c, h.workspaces); err != nil {
		return nil, err
	}
	q.Reader = !wsauth.CallerOf(c).Admin
	return &poll{query: q, timeout: timeout, rows: []activity.Row{}}, nil
}

// renderRows answers with rows, or with a 503 if the memory budget has no room for them.
func renderRows(c *gin.Context, rows []activity.Row) error {
	var held int64
	for _, r := range rows {
		held += int64(rowOverheadBytes + len(r.RequestBody) + len(r.ResponseBody))
	}
	if err := reserve(c, held); err != nil {
		return err
	}
	c.PureJSON(http.StatusOK, rows)
	return nil
}

var activityType = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,100}$`)

// parseActivityQuery reads the query parameters; get returns "" for one that is absent.
func parseActivityQuery(get func(string) string) (activity.Query, error) {
	p := params{get: get}
	q := activity.Query{
		Type:  p.text("type", activityType, "a type of activity, such as a2a_receive"),
		Peer:  p.uuid("peer_id"),
		After: p.uuid("since_id"),
		Limit: p.limit("limit"),
	}
	switch source := p.oneOf("source", "canvas", "agent"); source {
	case "canvas":
		q.Source = activity.FromCanvas
	case "agent":
		q.Source = activity.FromAgent
	}
	order := p.oneOf("order", "asc", "desc")
	q.Oldest = order == "asc"
	if order == "desc" && q.After.Valid {
		p.bad("order", "asc, or nothing, together with since_id")
	}
	if s := get("before_ts"); s != "" {
		// A plus sign that was not escaped arrives as a space.
		t, err := time.Parse(time.RFC3339Nano, strings.ReplaceAll(s, " ", "+"))
		if err != nil {
			p.bad("before_ts", "a time as in RFC 3339, such as 2026-01-31T12:00:00Z")
		}
		q.Before = t
	}
	seconds := p.positive("since_secs", "a whole number from 1; more than 2592000, which is 30 days, is 2592000")
	q.Within = min(time.Duration(seconds)*time.Second, maxSinceSpan)
	return q, p.err
}

// params parses query parameters and keeps the error of the first invalid one.
type params struct {
	get func(string) string
	err error
}

func (p *params) bad(name, want string) {
	if p.err == nil {
		p.err = refuse(http.StatusBadRequest, "invalid_parameter", fmt.Sprintf("%s must be %s", name, want)).with("parameter", name)
	}
}

func (p *params) text(name string, form *regexp.Regexp, want string) string {
	s := p.get(name)
	if s != "" && !form.MatchString(s) {
		p.bad(name, want)
	}
	return s
}

func (p *params) uuid(name string) uuid.NullUUID {
	s := p.get(name)
	if s == "" {
		return uuid.NullUUID{}
	}
	id, err := wsauth.ParseUUID(s)
	if err != nil {
		p.bad(name, "a UUID")
	}
	return uuid.NullUUID{UUID: id, Valid: true}
}

// limit returns 0 for an absent parameter, defaultRows for anything but a positive number, which clients in
// the field send, and the maximum for a number that is too large.
func (p *params) limit(name string) int {
	s := p.get(name)
	if s == "" {
		return 0
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil && !errors.Is(err, strconv.ErrRange) || n == 0 {
		return defaultRows
	}
	return int(n)
}

// positive returns 0 for an absent parameter, and the maximum for a number that is too large.
func (p *params) positive(name, want string) int {
	s := p.get(name)
	if s == "" {
		return 0
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil && !errors.Is(err, strconv.ErrRange) || n == 0 {
		p.bad(name, want)
	}
	return int(n)
}

func (p *params) oneOf(name string, allowed ...string) string {
	s := p.get(name)
	for _, a := range allowed {
		if s == a {
			return s
		}
	}
	if s != "" {
		p.bad(name, fmt.Sprintf("one of %q", allowed))
	}
	return ""
}
