// Package uploadname handles the names, types and part headers of uploads as clients send them.
//
// A client chooses all three, so none of them is safe to use in a path, in a header or in a database.
// SanitizeFilename and CleanMIMEType turn them into values that are. The rules are those of the
// workspace's Python code: a file gets the same name and type whether it is pushed to the workspace
// or polled. Both languages are tested against the same tables, in workspace/testdata.
//
// The package reads headers and strings only; it knows neither requests nor files.
package uploadname

import "strings"

const (
	// maxFilenameLength is the maximum length of a name that a workspace accepts, in characters. A
	// sanitized name is ASCII, so also in bytes.
	maxFilenameLength = 100
	// maxExtensionLength is the maximum length of an extension that is kept when a name is cut, with
	// its dot.
	maxExtensionLength = 16
	// fallbackFilename replaces "", "." and "..".
	fallbackFilename = "file"
)

// SanitizeFilename returns the name under which a file is kept, announced and delivered: 1 to 100
// characters of [A-Za-z0-9._-], never "." or "..". It is idempotent.
//
// The rule is that of sanitize_filename in workspace/internal_chat_uploads.py. Where Go and Python
// differ, Python decides:
//   - The last path component is the text after the last slash, so that of "dir/" is empty
//     ([path/filepath.Base] returns "dir"), and a backslash is an ordinary character.
//   - One code point becomes one underscore, however many bytes it has. Each byte that is not part of
//     valid UTF-8 counts as one code point, as in Python's surrogateescape.
//
// A name of more than 100 characters is cut to 100. The extension stays if it has at most 16
// characters with its dot.
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

// ValidFilename reports whether SanitizeFilename returns the name unchanged.
func ValidFilename(name string) bool {
	return SanitizeFilename(name) == name
}

// ContentDisposition returns the header value (RFC 6266) with which a client saves a file under its
// name and never shows it in place. It is safe for any input: it sanitizes the name, and a sanitized
// name needs no escaping inside quotes.
func ContentDisposition(filename string) string {
	return `attachment; filename="` + SanitizeFilename(filename) + `"`
}
