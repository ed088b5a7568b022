package uploadname

import (
	"mime"
	"net/textproto"
	"strings"
)

// PartField returns the name of the form field of a part of a multipart/form-data body, "" if it has
// none. It returns false for a part without a valid Content-Disposition of form-data; the body is then
// malformed. [mime/multipart.Part.FormName] does not distinguish the two, and rejects headers that
// PartFilename accepts.
func PartField(header textproto.MIMEHeader) (string, bool) {
	params, ok := dispositionParams(header)
	return params["name"], ok
}

// PartFilename returns the filename of a part of a multipart/form-data body as the client sent it: not
// sanitized, not reduced to its base name ([mime/multipart.Part.FileName] does that, by the rules of
// the operating system), and not necessarily valid UTF-8. It returns false for a part that is not a
// file: one without a filename, or with a missing or invalid Content-Disposition. The name of a file
// may be empty.
//
// Browsers encode a quote, CR or LF in a name as %22, %0D or %0A, but do not encode a literal %. The
// two cannot be distinguished, so neither is decoded. The extended form, filename* (RFC 5987), takes
// precedence over filename if it can be decoded.
func PartFilename(header textproto.MIMEHeader) (string, bool) {
	params, _ := dispositionParams(header)
	filename, ok := params["filename"]
	return filename, ok
}

// dispositionParams parses a part's Content-Disposition. mime.ParseMediaType does nearly all of it: it
// keeps raw bytes in quoted strings, decodes and prefers filename*, and refuses a duplicate parameter.
// Only its handling of backslashes is not what clients send.
func dispositionParams(header textproto.MIMEHeader) (map[string]string, bool) {
	disposition, params, err := mime.ParseMediaType(escapeBackslashes(header.Get("Content-Disposition")))
	if err != nil || disposition != "form-data" {
		return nil, false
	}
	return params, true
}

// escapeBackslashes doubles the backslashes in quoted strings that the client meant literally. Browsers
// never escape, and other clients escape only quotes and backslashes, so only \" and \\ are escapes.
// mime.ParseMediaType alone would also drop the backslash of `C:\[draft].txt`, and would reject
// `filename="odd\"`, which is how a browser sends a name that ends in a backslash. At the end of the
// header a quote can only be the closing one.
func escapeBackslashes(disposition string) string {
	var b strings.Builder
	quoted := false
	for i := 0; i < len(disposition); i++ {
		c := disposition[i]
		b.WriteByte(c)
		switch {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			escaped := byte('\\')
			if i+2 < len(disposition) && (disposition[i+1] == '"' || disposition[i+1] == '\\') {
				i++
				escaped = disposition[i]
			}
			b.WriteByte(escaped)
		}
	}
	return b.String()
}
