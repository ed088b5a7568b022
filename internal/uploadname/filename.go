package uploadname

import "strings"

const (
	// maxFilenameLength is the length of the longest name a workspace accepts,
	// in characters; a sanitized name is ASCII, so also in bytes.
	maxFilenameLength = 100
	// maxExtensionLength is the length of the longest extension that survives
	// when a name is cut, dot included.
	maxExtensionLength = 16
	// fallbackFilename stands in for names that name nothing: "", "." and "..".
	fallbackFilename = "file"
)

// SanitizeFilename turns the name a client sent into the name under which the
// file is kept, announced and delivered: 1 to 100 characters of
// [A-Za-z0-9._-], never "." or "..". It is idempotent.
//
// The rule is the workspace's, sanitize_filename in
// workspace/internal_chat_uploads.py, so that a file has the same name whether
// it was pushed or polled. Where the two languages have different habits,
// Python's decides:
//   - the last path component is the text after the last slash, so "dir/" has
//     an empty one ([path/filepath.Base] would say "dir"), and a backslash is
//     an ordinary character;
//   - one code point becomes one underscore, however many bytes it has. Each
//     byte that is not part of valid UTF-8 counts as one code point, which is
//     also how Python's surrogateescape hands it over.
//
// A name of more than 100 characters is cut to 100. What follows the last dot
// stays at its end, with the dot, if both together are at most 16 characters.
func SanitizeFilename(name string) string {
	name = name[strings.LastIndexByte(name, '/')+1:]
	name = strings.Map(func(r rune) rune {
		if isFilenameChar(r) {
			return r
		}
		return '_'
	}, name)
	if len(name) > maxFilenameLength {
		ext := ""
		if dot := strings.LastIndexByte(name, '.'); dot >= 0 && len(name)-dot <= maxExtensionLength {
			ext = name[dot:]
		}
		name = name[:maxFilenameLength-len(ext)] + ext
	}
	switch name {
	case "", ".", "..":
		return fallbackFilename
	}
	return name
}

func isFilenameChar(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' ||
		r == '.' || r == '_' || r == '-'
}

// ValidFilename reports whether a workspace would keep a file under this very
// name: whether SanitizeFilename leaves it as it is.
func ValidFilename(name string) bool {
	return SanitizeFilename(name) == name
}

// ContentDisposition is the header value (RFC 6266) that makes a client save a
// file under its name and never show it in place. It is safe for any input:
// the name is sanitized first, and nothing in a sanitized name needs escaping
// inside quotes.
func ContentDisposition(filename string) string {
	return `attachment; filename="` + SanitizeFilename(filename) + `"`
}
