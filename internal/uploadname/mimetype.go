package uploadname

import (
	"cmp"
	"mime"
	"path"
	"strings"
)

const (
	// unknownMIMEType is HTTP's type for bytes of an unknown type.
	unknownMIMEType = "application/octet-stream"
	// maxMIMENameLength bounds a type and a subtype each (RFC 6838, 4.2).
	maxMIMENameLength = 127
)

// commonMIMETypes are the types of common attachments. They take precedence over the tables of the
// operating system, which differ between distributions and are sometimes wrong for us (most of them
// say that .ts is a video).
var commonMIMETypes = map[string]string{
	".7z":   "application/x-7z-compressed",
	".avif": "image/avif",
	".bmp":  "image/bmp",
	".bz2":  "application/x-bzip2",
	".c":    "text/x-c",
	".cpp":  "text/x-c++",
	".css":  "text/css",
	".csv":  "text/csv",
	".diff": "text/x-diff",
	".doc":  "application/msword",
	".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
	".epub": "application/epub+zip",
	".flac": "audio/flac",
	".gif":  "image/gif",
	".go":   "text/x-go",
	".gz":   "application/gzip",
	".heic": "image/heic",
	".htm":  "text/html",
	".html": "text/html",
	".java": "text/x-java",
	".jpeg": "image/jpeg",
	".jpg":  "image/jpeg",
	".js":   "text/javascript",
	".json": "application/json",
	".log":  "text/plain",
	".m4a":  "audio/mp4",
	".md":   "text/markdown",
	".mjs":  "text/javascript",
	".mov":  "video/quicktime",
	".mp3":  "audio/mpeg",
	".mp4":  "video/mp4",
	".odp":  "application/vnd.oasis.opendocument.presentation",
	".ods":  "application/vnd.oasis.opendocument.spreadsheet",
	".odt":  "application/vnd.oasis.opendocument.text",
	".ogg":  "audio/ogg",
	".pdf":  "application/pdf",
	".png":  "image/png",
	".ppt":  "application/vnd.ms-powerpoint",
	".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
	".py":   "text/x-python",
	".rs":   "text/x-rust",
	".rtf":  "application/rtf",
	".sh":   "application/x-sh",
	".sql":  "application/sql",
	".svg":  "image/svg+xml",
	".tar":  "application/x-tar",
	".tgz":  "application/gzip",
	".tif":  "image/tiff",
	".tiff": "image/tiff",
	".toml": "application/toml",
	".ts":   "text/x-typescript",
	".tsv":  "text/tab-separated-values",
	".tsx":  "text/x-typescript",
	".txt":  "text/plain",
	".wav":  "audio/wav",
	".webm": "video/webm",
	".webp": "image/webp",
	".xls":  "application/vnd.ms-excel",
	".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
	".xml":  "application/xml",
	".xz":   "application/x-xz",
	".yaml": "application/yaml",
	".yml":  "application/yaml",
	".zip":  "application/zip",
	".zst":  "application/zstd",
}

// CleanMIMEType returns the type under which a file is kept and served. It is the first of these:
// the sender's Content-Type without parameters, if that is a plain type/subtype; the type of the
// extension of the sanitized filename, from commonMIMETypes or the tables of the operating system;
// application/octet-stream.
//
// The result is always two lower-case tokens (RFC 9110) of at most 127 characters with a slash
// between them, so it is safe in a header.
func CleanMIMEType(contentType, filename string) string {
	ext := strings.ToLower(path.Ext(SanitizeFilename(filename)))
	return cmp.Or(
		plainMIMEType(contentType),
		commonMIMETypes[ext],
		plainMIMEType(mime.TypeByExtension(ext)),
		unknownMIMEType,
	)
}

// plainMIMEType returns the type/subtype of a Content-Type, or "". It ignores the parameters:
// mime.ParseMediaType would refuse a valid type for an invalid parameter, and accepts a type without
// a subtype.
func plainMIMEType(contentType string) string {
	mimeType, _, _ := strings.Cut(contentType, ";")
	mimeType = strings.Trim(mimeType, " \t")
	mainType, subtype, _ := strings.Cut(mimeType, "/")
	if mainType == "*" || subtype == "*" { // a range of types, as pickers of phones name it
		return ""
	}
	if !isMIMEName(mainType) || !isMIMEName(subtype) {
		return ""
	}
	return strings.ToLower(mimeType)
}

func isMIMEName(s string) bool {
	if s == "" || len(s) > maxMIMENameLength {
		return false
	}
	for _, r := range s {
		if !isTokenChar(r) {
			return false
		}
	}
	return true
}

// isTokenChar reports whether r is a tchar of RFC 9110, 5.6.2.
func isTokenChar(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' ||
		strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}
