package handlers

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"sync"

	"github.com/molecule-ai/platform/internal/fairshare"
	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/spool"
	"github.com/molecule-ai/platform/internal/uploadname"
)

const (
	// filesField is the form field whose parts are the files.
	filesField = "files"

	// maxOtherParts is the maximum number of parts that are not files.
	maxOtherParts = 64

	// maxPartHeader bounds the header of one part, in bytes. mime/multipart itself would buffer up to
	// 10 MiB.
	maxPartHeader = 32 << 10
)

// wireBuffers are read buffers for bodies: mime/multipart reads 4 KiB at a time, and without a buffer each
// read would be a system call.
var wireBuffers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, wireBytes) }}

const wireBytes = 64 << 10

// spool reads the request's files into the batch.
func (h *ChatFilesHandler) spool(r *http.Request, batch *spool.Batch) error {
	mediaType, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "multipart/form-data" || params["boundary"] == "" {
		return refuse(http.StatusBadRequest, "not_multipart", "Content-Type must be multipart/form-data with a boundary")
	}
	// mime/multipart takes a body that is truncated between two parts, or in a part's header, for
	// complete. So the client's bytes are followed by the line break that may be missing after the last
	// boundary, and then by an error instead of the end.
	wire := wireBuffers.Get().(*bufio.Reader)
	defer wireBuffers.Put(wire)
	wire.Reset(r.Body)
	defer wire.Reset(nil)
	body := &headerLimit{Reader: io.MultiReader(wire, strings.NewReader("\r\n"), truncatedBody{})}
	reader := multipart.NewReader(body, params["boundary"])
	others := 0
	for {
		body.arm()
		part, err := reader.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return h.partError(cmp.Or(body.err, err))
		}
		body.disarm()
		field, ok := uploadname.PartField(part.Header)
		switch {
		case !ok:
			return refuse(http.StatusBadRequest, "broken_multipart", "a part has no readable Content-Disposition: form-data")
		case field == filesField && batch.Len() == h.limits.MaxFiles:
			return refuse(http.StatusBadRequest, "too_many_files", "too many files").with("max", h.limits.MaxFiles)
		case field == filesField:
			err = h.spoolFile(part, batch)
		case others == maxOtherParts:
			return refuse(http.StatusBadRequest, "too_many_parts", "too many parts that are not files").with("max", maxOtherParts)
		default:
			others++
			err = h.skip(part)
		}
		if err != nil {
			return err
		}
	}
	if batch.Len() == 0 {
		return refuse(http.StatusBadRequest, "no_files", "no part named files; send each file as a part of that name")
	}
	return nil
}

func (h *ChatFilesHandler) spoolFile(part *multipart.Part, batch *spool.Batch) error {
	name, _ := uploadname.PartFilename(part.Header)
	err := batch.Add(name, part.Header.Get("Content-Type"), part)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pendinguploads.ErrTooLarge):
		return refuse(http.StatusRequestEntityTooLarge, "file_too_large", "file exceeds per-file cap").
			with("filename", uploadname.SanitizeFilename(name)).with("max", h.limits.MaxFileBytes).because(err)
	case errors.Is(err, spool.ErrTempFile):
		return err
	default:
		return h.partError(err)
	}
}

// skip reads a part that is not a file to its end. Otherwise NextRawPart would read the rest under the limit
// for headers.
func (h *ChatFilesHandler) skip(part *multipart.Part) error {
	if _, err := io.Copy(io.Discard, part); err != nil {
		return h.partError(err)
	}
	return nil
}

// partError translates an error of reading the multipart body.
func (h *ChatFilesHandler) partError(err error) error {
	if errors.Is(err, fairshare.ErrSaturated) { // the reader returned it: the spool budget is exhausted
		return err
	}
	if errors.Is(err, errPartHeaderTooLarge) {
		return refuse(http.StatusBadRequest, "part_header_too_large", fmt.Sprintf("a part's header is longer than %d bytes", maxPartHeader)).
			with("max", maxPartHeader).because(err)
	}
	return bodyError(err, h.limits.MaxRequestBytes)
}

// truncatedBody is read after the end of a body without its last boundary.
type truncatedBody struct{}

// Read implements io.Reader.
func (truncatedBody) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

var errPartHeaderTooLarge = errors.New("handlers: part header too large")

// headerLimit bounds what is read from the body while it is armed. mime/multipart reads ahead by at most its
// buffer of 4 KiB, for which the bound has room. It keeps the error that ended the body, because
// net/textproto reports a truncated header as malformed.
type headerLimit struct {
	io.Reader
	armed     bool
	bytesLeft int
	err       error
}

func (g *headerLimit) arm()    { g.armed, g.bytesLeft = true, maxPartHeader }
func (g *headerLimit) disarm() { g.armed = false }

// Read implements io.Reader.
func (g *headerLimit) Read(p []byte) (int, error) {
	switch {
	case !g.armed:
	case g.bytesLeft <= 0:
		g.err = errPartHeaderTooLarge
		return 0, g.err
	default:
		p = p[:min(len(p), g.bytesLeft)]
	}
	n, err := g.Reader.Read(p)
	g.bytesLeft -= n
	g.err = err
	return n, err
}
