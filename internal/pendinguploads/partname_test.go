package pendinguploads

import (
	"mime/multipart"
	"net/textproto"
	"strings"
	"testing"
)

func disposition(value string) textproto.MIMEHeader {
	return textproto.MIMEHeader{"Content-Disposition": {value}}
}

// Caught here, each planted once: Part.FileName's base name, escapeBackslashes
// left out, and a quote that ends the header taken as escaped.
func TestPartFilename_IsWhatTheClientSent(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ why, header, want string }{
		{"as browsers send it", `form-data; name="files"; filename="a.txt"`, "a.txt"},
		{"a path is kept", `form-data; name="files"; filename="a/b/"`, "a/b/"},
		{"traversal is kept", `form-data; name="files"; filename="../../x"`, "../../x"},
		{"a quote in a browser", `form-data; name="files"; filename="na%22me.txt"`, "na%22me.txt"},
		{"a percent sign", `form-data; name="files"; filename="100%.txt"`, "100%.txt"},
		{"UTF-8", `form-data; name="files"; filename="日本語 😀.txt"`, "日本語 😀.txt"},
		{"not UTF-8", "form-data; name=\"files\"; filename=\"a\xff\xe9b.txt\"", "a\xff\xe9b.txt"},
		{"what separates parameters", `form-data; name="files"; filename="a;b=c, d.txt"`, "a;b=c, d.txt"},
		{"an empty name", `form-data; name="files"; filename=""`, ""},
		{"no quotes", `form-data; name=files; filename=a.txt`, "a.txt"},
		{"other case and order", `Form-Data; FILENAME="a.txt"; Name="files"`, "a.txt"},
		{"trailing semicolon", `form-data; name="files"; filename="a.txt";`, "a.txt"},
		{"Windows path", `form-data; name="files"; filename="C:\dir\x.txt"`, `C:\dir\x.txt`},
		{"Windows path before a special", `form-data; name="files"; filename="C:\[draft].txt"`, `C:\[draft].txt`},
		{"escaped quotes", `form-data; name="files"; filename="say \"hi\".txt"`, `say "hi".txt`},
		{"escaped quote at the end", `form-data; name="files"; filename="say \"hi\""`, `say "hi"`},
		{"escaped backslash", `form-data; name="files"; filename="a\\b.txt"`, `a\b.txt`},
		{"escaped backslash at the end", `form-data; name="files"; filename="a\\"`, `a\`},
		{"backslash at the end, not escaped", `form-data; name="files"; filename="a\"`, `a\`},
		{"extended", `form-data; name="files"; filename*=UTF-8''na%C3%AFve%20%22.txt`, `naïve ".txt`},
		{"extended wins, first", `form-data; name="files"; filename*=UTF-8''%E2%82%AC; filename="EUR"`, "€"},
		{"extended wins, last", `form-data; name="files"; filename="EUR"; filename*=utf-8'en'%E2%82%AC`, "€"},
		{"extended of unknown charset", `form-data; name="files"; filename="EUR"; filename*=X'%A4`, "EUR"},
		{"extended and broken", `form-data; name="files"; filename="EUR"; filename*=UTF-8''%E2%8`, "EUR"},
	} {
		got, ok := PartFilename(disposition(c.header))
		if !ok || got != c.want {
			t.Errorf("%s: PartFilename(%s) = %q, %v, want %q", c.why, c.header, got, ok, c.want)
		}
		if field, ok := PartField(disposition(c.header)); !ok || field != "files" {
			t.Errorf("%s: PartField(%s) = %q, %v", c.why, c.header, field, ok)
		}
	}
}

func TestPartFilename_FieldIsNoFile(t *testing.T) {
	t.Parallel()
	for header, field := range map[string]string{
		`form-data; name="files"`:                       "files",
		`form-data; name="note\"; filename=\"x"`:        `note"; filename="x`,
		`form-data; name="files"; filename*=UTF-8''%zz`: "files",
		`form-data`:          "",
		`form-data; name=""`: "",
		`form-data; name="files"; x-filename="a.txt"`:        "files",
		`form-data; name*=UTF-8''fil%65s; description="a=b"`: "files",
	} {
		if name, ok := PartFilename(disposition(header)); ok {
			t.Errorf("PartFilename(%s) = %q, want none", header, name)
		}
		if got, ok := PartField(disposition(header)); !ok || got != field {
			t.Errorf("PartField(%s) = %q, %v, want %q", header, got, ok, field)
		}
	}
}

func TestPartFilename_UnreadableHeaderIsNeitherFileNorField(t *testing.T) {
	t.Parallel()
	headers := []textproto.MIMEHeader{nil, {}}
	for _, value := range []string{
		"",
		";",
		`form-data; name="files"; filename="a.txt`,
		`form-data; name="files"; filename=a b.txt`,
		`form-data; name="files"; filename`,
		`form-data; name="files"; filename="a"; filename="b"`,
		`form-data; name="files" filename="a"`,
		`attachment; name="files"; filename="a.txt"`,
		`filename="a.txt"`,
	} {
		headers = append(headers, disposition(value))
	}
	for _, header := range headers {
		if name, ok := PartFilename(header); ok || name != "" {
			t.Errorf("PartFilename(%q) = %q, %v", header, name, ok)
		}
		if field, ok := PartField(header); ok || field != "" {
			t.Errorf("PartField(%q) = %q, %v", header, field, ok)
		}
	}
}

// What a real multipart reader hands over is what is tested above: raw bytes
// reach PartFilename as they were sent.
func TestPartFilename_SurvivesTheMultipartReader(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"dir/", "é\xff.txt", `C:\x\`, "na%22me"} {
		body := "--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"" + name + "\"\r\n\r\n\r\n--b--\r\n"
		part, err := multipart.NewReader(strings.NewReader(body), "b").NextPart()
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		if got, ok := PartFilename(part.Header); !ok || got != name {
			t.Errorf("PartFilename of %q = %q, %v", name, got, ok)
		}
	}
}

// FuzzPartFilename reads any header, and reads back any name that a client
// which escapes quotes and backslashes could send.
func FuzzPartFilename(f *testing.F) {
	for _, name := range hostileNames {
		f.Add(`form-data; name="files"; filename="`+name+`"`, name)
	}
	f.Add(`form-data; name="files"; filename*0*=UTF-8''a%20; filename*1="b"`, `\`)
	f.Add(`form-data; filename="\`, `\"`)
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	f.Fuzz(func(t *testing.T, header, name string) {
		if got, ok := PartFilename(disposition(header)); !ok && got != "" {
			t.Errorf("PartFilename(%q) = %q without being a file", header, got)
		}
		if strings.ContainsAny(name, "\r\n") {
			return // no header holds them
		}
		header = `form-data; name="files"; filename="` + escape.Replace(name) + `"`
		if got, ok := PartFilename(disposition(header)); !ok || got != name {
			t.Errorf("PartFilename(%s) = %q, %v, want %q", header, got, ok, name)
		}
	})
}
