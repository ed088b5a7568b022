package pendinguploads

import (
	"fmt"

	"github.com/molecule-ai/platform/internal/uploadname"
)

// check refuses what no workspace should be offered, before anything is written. Every
// Storage calls it first.
func (l Limits) check(files []NewFile) error {
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
