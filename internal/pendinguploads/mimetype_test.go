package pendinguploads

import (
	"mime"
	"regexp"
	"strings"
	"testing"
)

func TestCleanMIMEType_SenderThenExtensionThenUnknown(t *testing.T) {
	t.Parallel()
	// Extensions that only these tables of the machine know.
	for ext, mimeType := range map[string]string{
		".x-two-tokens": "Application/X-Two; charset=utf-8",
		".x-one-token":  "one",
	} {
		if err := mime.AddExtensionType(ext, mimeType); err != nil {
			t.Fatal(err)
		}
	}
	longest := strings.Repeat("a", 127)
	for _, c := range []struct{ why, contentType, filename, want string }{
		{"the sender's word", "image/png", "a.txt", "image/png"},
		{"without parameters", "text/plain; charset=utf-8", "a.bin", "text/plain"},
		{"without broken parameters", "text/plain; charset=\"\x00", "a.bin", "text/plain"},
		{"an empty parameter", "text/plain;", "a.bin", "text/plain"},
		{"lower-cased", "Text/X-MarkDown", "", "text/x-markdown"},
		{"surrounded by blanks", " \ttext/plain \t; a=b", "", "text/plain"},
		{"vendor tree", "application/vnd.api+json", "", "application/vnd.api+json"},
		{"the sender knows nothing", "application/octet-stream", "a.txt", "application/octet-stream"},
		{"every token character", "x!#$%&'*+-.^_`|~9/y", "", "x!#$%&'*+-.^_`|~9/y"},
		{"longest", longest + "/" + longest, "", longest + "/" + longest},
		{"type too long", longest + "a/b", "a.txt", "text/plain"},
		{"subtype too long", "a/b" + longest, "a.txt", "text/plain"},
		{"missing", "", "a.pdf", "application/pdf"},
		{"only parameters", "; charset=utf-8", "a.pdf", "application/pdf"},
		{"no slash", "text", "a.pdf", "application/pdf"},
		{"no subtype", "text/", "a.pdf", "application/pdf"},
		{"no type", "/plain", "a.pdf", "application/pdf"},
		{"two slashes", "text/plain/x", "a.pdf", "application/pdf"},
		{"blank inside", "text /plain", "a.pdf", "application/pdf"},
		{"two types", "text/plain, text/html", "a.pdf", "application/pdf"},
		{"NUL", "text/pl\x00ain", "a.pdf", "application/pdf"},
		{"line end inside", "text/plain\r\nX-Evil: 1", "a.pdf", "application/pdf"},
		{"line end at the end", "text/plain\r\n", "a.pdf", "application/pdf"},
		{"DEL", "text/plain\x7f", "a.pdf", "application/pdf"},
		{"beyond ASCII", "text/plaïn", "a.pdf", "application/pdf"},
		{"not UTF-8", "text/plain\xff", "a.pdf", "application/pdf"},
		{"code is no video", "", "main.ts", "text/x-typescript"},
		{"extension in capitals", "", "A.JPG", "image/jpeg"},
		{"last extension", "", "a.tar.gz", "application/gzip"},
		{"the name is sanitized first", "", "x.pdf/" + strings.Repeat("a", 200) + ".md", "text/markdown"},
		{"the extension is not in the path", "", "x.pdf/", "application/octet-stream"},
		{"the machine's tables", "", "a.x-two-tokens", "application/x-two"},
		{"nonsense in the machine's tables", "", "a.x-one-token", "application/octet-stream"},
		{"unknown extension", "", "a.moleculeunknown", "application/octet-stream"},
		{"no extension", "", "README", "application/octet-stream"},
		{"no name", "", "", "application/octet-stream"},
	} {
		if got := CleanMIMEType(c.contentType, c.filename); got != c.want {
			t.Errorf("%s: CleanMIMEType(%q, %q) = %q, want %q", c.why, c.contentType, c.filename, got, c.want)
		}
	}
}

func TestCleanMIMEType_OwnTableIsPlainAndReachable(t *testing.T) {
	t.Parallel()
	for ext, want := range commonMIMETypes {
		if plainMIMEType(want) != want {
			t.Errorf("%s: %q is no plain type in lower case", ext, want)
		}
		if got := CleanMIMEType("", "a"+ext); got != want {
			t.Errorf("CleanMIMEType of a%s = %q, want %q", ext, got, want)
		}
	}
}

var twoTokens = regexp.MustCompile("\\A[!#$%&'*+.^_`|~0-9a-z-]{1,127}/[!#$%&'*+.^_`|~0-9a-z-]{1,127}\\z")

func FuzzCleanMIMEType(f *testing.F) {
	f.Add("text/plain; charset=utf-8", "a.txt")
	f.Add("", "a.PDF")
	f.Add("text/plain\r\nX: y", "a.\x00")
	f.Add("Ä/\xff", ".html")
	f.Fuzz(func(t *testing.T, contentType, filename string) {
		got := CleanMIMEType(contentType, filename)
		if !twoTokens.MatchString(got) {
			t.Errorf("CleanMIMEType(%q, %q) = %q", contentType, filename, got)
		}
	})
}
