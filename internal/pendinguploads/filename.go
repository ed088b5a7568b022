package pendinguploads

import "github.com/molecule-ai/platform/internal/uploadname"

// SanitizeFilename returns the name under which a file is kept, announced and delivered: that of
// uploadname.SanitizeFilename, which has the rule.
func SanitizeFilename(name string) string { return uploadname.SanitizeFilename(name) }
