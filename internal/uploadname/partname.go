package uploadname

import (
	"mime"
	"net/textproto"
	"strings"
)

// PartField returns the name of the form field that a part of a
// multipart/form-data body belongs to, "" if it has none. It is false for a
// part without a readable Content-Disposition of form-data; such a body is
// broken. Unlike [mime/multipart.Part.FormName] it can tell the two apart, and
// reads every header that PartFilename reads.
func PartField(header textproto.MIMEHeader) (string, bool) {
	params, ok := dispositionParams(header)
	return params["name"], ok
}

// PartFilename returns the filename of a part of a multipart/form-data body as
// the client sent it: not sanitized, not shortened to a base name (which
// [mime/multipart.Part.FileName] does, by the rules of the machine it runs on),
// and not necessarily valid UTF-8. It is false for a part that is no file: one
// without a filename, or whose Content-Disposition is missing or unreadable.
// A file may well have an empty name.
//
// Browsers write a quote, CR or LF in a name as %22, %0D or %0A, and leave a
// literal % alone; since the two cannot be told apart, neither is decoded. The
// extended form, filename* (RFC 5987), wins over filename if it can be decoded.
func PartFilename(header textproto.MIMEHeader) (string, bool) {
	params, _ := dispositionParams(header)
	filename, ok := params["filename"]
	return filename, ok
}

// dispositionParams parses a part's Content-Disposition. It leaves nearly all
// of it to mime.ParseMediaType, which keeps raw bytes in quoted strings as they
// are, decodes and prefers filename*, and refuses a parameter given twice. Only
// its reading of backslashes does not fit.
func dispositionParams(header textproto.MIMEHeader) (map[string]string, bool) {
	disposition, params, err := mime.ParseMediaType(escapeBackslashes(header.Get("Content-Disposition")))
	if err != nil || disposition != "form-data" {
		return nil, false
	}
	return params, true
}

// escapeBackslashes doubles those backslashes within quoted strings that the
// client meant literally. Browsers never escape, other clients write \" and \\
// and nothing else, so only these two are escapes. mime.ParseMediaType by
// itself also takes the backslash out of `C:\[draft].txt`, and cannot read
// `filename="odd\"`, a name that ends in a backslash as a browser sends it: at
// the very end of the header a quote can only be the closing one.
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
