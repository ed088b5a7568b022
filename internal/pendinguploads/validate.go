package pendinguploads

import (
	"fmt"

	"github.com/molecule-ai/platform/internal/uploadname"
)

// validate checks the descriptions of the files of an upload. Every Storage calls it first, before
// it writes anything.
func (l Limits) validate(files []NewFile) error {
	var total int64
	for _, f := range files {
		total += f.Size
		var err error
		switch {
		case f.Size < 0:
			err = fmt.Errorf("%w: negative size", ErrInvalidFile)
		case !uploadname.ValidFilename(f.Name):
			err = fmt.Errorf("%w: name is not sanitized", ErrInvalidFile)
		case uploadname.CleanMIMEType(f.MIMEType, "") != f.MIMEType:
			err = fmt.Errorf("%w: type is not a plain type/subtype", ErrInvalidFile)
		case f.Size > l.MaxFileBytes:
			err = ErrTooLarge
		case total > l.MaxBatchBytes:
			err = ErrBatchTooLarge
		}
		if err != nil {
			return fmt.Errorf("pendinguploads: stage %q: %w", f.Name, err)
		}
	}
	return nil
}

// totalBytes returns the size of the files together.
func totalBytes(files []NewFile) (bytes int64) {
	for _, f := range files {
		bytes += f.Size
	}
	return bytes
}
