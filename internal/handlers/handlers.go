// Package handlers is HTTP in and out: it parses a request, makes one call into the
// packages that do the work, and renders the answer, as the wire contract has it.
//
// A handler returns an error instead of rendering it; Render turns it into the answer that
// the table in errors.go gives. What clients read never has a cause in it, only the log
// does. Guards, routes and limits of connections are the server's.
package handlers

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/tracing"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// maxJSONBytes bounds every JSON body, messages included.
const maxJSONBytes = 1 << 20

// A Handler answers a request or says why it cannot.
type Handler func(*gin.Context) error

// Wrap makes a gin handler of h.
func Wrap(h Handler) gin.HandlerFunc {
	return func(c *gin.Context) {
		if err := h(c); err != nil {
			Render(c, err)
		}
	}
}

// logger returns the request's logger: its lines carry the request's id, and once the
// caller is known the workspace and who is asking.
func logger(c *gin.Context) *slog.Logger {
	log, ok := c.Value(loggerKey).(*slog.Logger)
	if !ok {
		log = slog.Default()
	}
	if trace := tracing.ID(c.Request.Context()); trace != "" {
		log = log.With("trace_id", trace)
	}
	if workspace := wsauth.WorkspaceOf(c); workspace != uuid.Nil {
		log = log.With("workspace_id", workspace)
	}
	return log.With(callerFields(wsauth.CallerOf(c))...)
}

// callerFields tell who is asking, if that is known.
func callerFields(caller wsauth.Caller) []any {
	switch {
	case caller.Admin:
		return []any{"caller", "admin"}
	case caller.TokenID != uuid.Nil:
		return []any{"caller", "workspace", "token_id", caller.TokenID}
	}
	return nil
}

// requireExistingWorkspace makes the operator learn that there is no such workspace, instead of that it has
// nothing. Whoever else passed the guard has shown a token of it.
func requireExistingWorkspace(c *gin.Context, store *workspaces.Store) error {
	if !wsauth.CallerOf(c).Admin {
		return nil
	}
	_, err := store.Get(c.Request.Context(), wsauth.WorkspaceOf(c))
	return err
}

// fileID returns the :file_id of the path.
func fileID(c *gin.Context) (uuid.UUID, error) {
	id, err := wsauth.ParseUUID(c.Param("file_id"))
	if err != nil {
		return uuid.UUID{}, refuse(http.StatusBadRequest, "invalid_file_id", "invalid file_id")
	}
	return id, nil
}

// readJSON reads a body of at most maxJSONBytes into v. The whole body must be one JSON
// value; fields that v does not have are ignored.
func readJSON(c *gin.Context, v any) error {
	raw, err := readBody(c)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		var wrongType *json.UnmarshalTypeError
		if errors.As(err, &wrongType) && wrongType.Field != "" {
			return refuse(http.StatusBadRequest, "invalid_request",
				fmt.Sprintf("%s must be of type %s", wrongType.Field, wrongType.Type.Kind()))
		}
		return refuse(http.StatusBadRequest, "invalid_json", "request body is not valid JSON")
	}
	return nil
}

// bodyError says what a body that could not be read means. limit is what the body may have.
func bodyError(err error, limit int64) error {
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong), errors.Is(err, pendinguploads.ErrBatchTooLarge):
		return tooLarge(limit)
	case errors.Is(err, errSlowBody):
		return err
	default:
		return refuse(http.StatusBadRequest, "broken_body", "request body is broken or was cut; send it again").because(err)
	}
}

// tooLarge refuses a body that is longer than limit.
func tooLarge(limit int64) *refusal {
	return refuse(http.StatusRequestEntityTooLarge, "request_too_large", "request body exceeds limit").with("max", limit)
}
