package pendinguploads_test

import (
	"testing"

	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/uploadname"
)

// Planted: the name returned as it is.
func TestSanitizeFilename_IsThatOfUploadname(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "..", "a b.txt", "dir/é.pdf"} {
		if got, want := pendinguploads.SanitizeFilename(name), uploadname.SanitizeFilename(name); got != want {
			t.Errorf("SanitizeFilename(%q) = %q, want %q", name, got, want)
		}
	}
}
