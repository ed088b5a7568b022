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

// URLSigner returns signed URLs, with which anybody can read a file until they expire; "" for a file that
// is not in an object store. *pendinguploads.ObjectStorage implements it.
type URLSigner interface {
	SignedURL(ctx context.Context, workspace, id uuid.UUID) (pendinguploads.File, string, error)
}

// WithSignedURLs makes Content redirect clients that request redirect=true to a signed URL.
func (h *PendingUploadsHandler) WithSignedURLs(signer URLSigner) { h.signer = signer }

// redirect answers with a redirect to a signed URL, and reports whether it did. The platform serves ranges
// and conditional requests itself, as well as files for which the store returns no signed URL.
func (h *PendingUploadsHandler) redirect(c *gin.Context, id uuid.UUID) (bool, error) {
	if c.Request.Method != http.MethodGet {
		return false, nil
	}
	p := params{get: c.Query}
	requested := p.oneOf("redirect", "true", "false") == "true"
	if p.err != nil || !requested || h.signer == nil {
		return false, p.err
	}
	for _, conditional := range []string{"Range", "If-Match", "If-None-Match"} {
		if c.GetHeader(conditional) != "" {
			return false, nil
		}
	}
	file, signedURL, err := h.signer.SignedURL(c.Request.Context(), wsauth.WorkspaceOf(c), id)
	if err != nil && !errors.Is(err, pendinguploads.ErrNotFound) {
		logger(c).WarnContext(c, "no signed URL for the file; the platform serves its bytes", "file_id", id, "error", err)
	}
	if err != nil || signedURL == "" {
		return false, nil
	}
	audit(c, "redirected", "file_id", file.ID, "filename", file.Name, "size", file.Size)
	c.Header("Location", signedURL)
	c.Header("Repr-Digest", reprDigest(file))
	c.Header("Cache-Control", "no-store")
	c.Status(http.StatusTemporaryRedirect)
	c.Writer.WriteHeaderNow() // c.Redirect would add an HTML body
	return true, nil
}

// reprDigest returns the Repr-Digest header of a file (RFC 9530).
func reprDigest(f pendinguploads.File) string {
	return "sha-256=:" + base64.StdEncoding.EncodeToString(f.SHA256[:]) + ":"
}
