package handlers

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/wsauth"
)

// Links hands out URLs from which anybody can read a file for a while, "" for a file that has none.
// *pendinguploads.ObjectStorage does.
type Links interface {
	SignedURL(ctx context.Context, workspace, id uuid.UUID) (pendinguploads.File, string, error)
}

// WithLinks lets clients that ask for it with redirect=true fetch bytes past the platform.
func (h *PendingUploadsHandler) WithLinks(links Links) { h.links = links }

// redirect sends the client to the bytes, and reports whether it did. What is no plain download is
// answered here as always, and so is a file whose store has no URLs, or cannot make one now.
func (h *PendingUploadsHandler) redirect(c *gin.Context, id uuid.UUID) (bool, error) {
	if c.Request.Method != http.MethodGet {
		return false, nil
	}
	p := params{get: c.Query}
	asked := p.oneOf("redirect", "true", "false") == "true"
	if p.err != nil || !asked || h.links == nil {
		return false, p.err
	}
	for _, conditional := range []string{"Range", "If-Match", "If-None-Match"} {
		if c.GetHeader(conditional) != "" {
			return false, nil
		}
	}
	file, link, err := h.links.SignedURL(c.Request.Context(), wsauth.WorkspaceOf(c), id)
	if err != nil && !errors.Is(err, pendinguploads.ErrNotFound) {
		logger(c).WarnContext(c, "no link to a file; its bytes are served here", "file_id", id, "error", err)
	}
	if err != nil || link == "" {
		return false, nil
	}
	audit(c, "redirected", "file_id", file.ID, "filename", file.Name, "size", file.Size)
	c.Header("Location", link)
	c.Header("Repr-Digest", reprDigest(file))
	c.Header("Cache-Control", "no-store")
	c.Status(http.StatusTemporaryRedirect)
	c.Writer.WriteHeaderNow() // gin's own would add a page of HTML
	return true, nil
}

// reprDigest is the digest of a file, as RFC 9530 writes it.
func reprDigest(f pendinguploads.File) string {
	return "sha-256=:" + base64.StdEncoding.EncodeToString(f.SHA256[:]) + ":"
}
