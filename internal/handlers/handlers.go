// Package handlers has the HTTP handlers and middleware of the wire contract. A handler parses a request,
// makes one call into the package that does the work, and renders the answer.
//
// A handler returns an error instead of rendering it. Render maps the error to an answer with the table in
// errors.go. Answers never contain the cause of an error; the log does. Routes, guards and limits of
// connections belong to package server.
package handlers

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/jsoncheck"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/tracing"
	"github.com/molecule-ai/platform/internal/workspaces"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// maxJSONBytes bounds every JSON body, messages included.
const maxJSONBytes = 1 << 20

// A Handler answers a request, or returns the error for Render.
type Handler func(*gin.Context) error

// Wrap returns a gin handler that calls h and renders its error.
func Wrap(h Handler) gin.HandlerFunc {
	return func(c *gin.Context) {
		if err := h(c); err != nil {
			Render(c, err)
		}
	}
}

// logger returns the request's logger. Its lines carry the request's id and, after a guard, the workspace
// and the caller.
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

// callerFields returns the log fields of a caller, nil for the zero Caller.
func callerFields(caller wsauth.Caller) []any {
	switch {
	case caller.Admin:
		return []any{"caller", "admin"}
	case caller.TokenID != uuid.Nil:
		return []any{"caller", "workspace", "token_id", caller.TokenID}
	}
	return nil
}

// requireExistingWorkspace returns workspaces.ErrNotFound if the operator names a workspace that does not
// exist, which would otherwise look empty. Other callers have a token of an existing workspace.
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

// readJSON parses a body of at most maxJSONBytes into v. The whole body must be one JSON value; unknown
// fields are ignored.
func readJSON(c *gin.Context, v any) error {
	raw, err := readBody(c)
	if err != nil {
		return err
	}
	if err := checkJSON(raw); err != nil {
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

// checkJSON refuses JSON that a reader in another language could not use. What a client sends is stored for
// other clients, and one value that a poller cannot parse would stop it at that page.
func checkJSON(raw []byte) error {
	var fault *jsoncheck.Error
	switch err := jsoncheck.Check(raw); {
	case errors.As(err, &fault):
		return refuse(http.StatusBadRequest, "invalid_json", "request body is not JSON that every client can read: "+fault.Error())
	case err != nil:
		return refuse(http.StatusBadRequest, "invalid_json", "request body is not valid JSON")
	}
	return nil
}

// bodyError translates an error of reading a body. limit is the maximum size of the body.
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

// tooLarge is the refusal of a body that is longer than limit.
func tooLarge(limit int64) *refusal {
	return refuse(http.StatusRequestEntityTooLarge, "request_too_large", "request body exceeds limit").with("max", limit)
}
