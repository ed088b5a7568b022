package uploadname

import (
	"cmp"
	"mime/multipart"
	"net/textproto"
	"strings"
	"testing"
)

func disposition(value string) textproto.MIMEHeader {
	return textproto.MIMEHeader{"Content-Disposition": {value}}
}

// partHeaderCases is the table that the workspace's tests read too.
type partHeaderCases struct {
	Files, Fields, Unreadable []partHeaderCase
}

type partHeaderCase struct {
	Why    string
	Header string
	Want   string // of a file: its name
	Field  string // of a field: its name
	// Bytes that are not UTF-8, which JSON cannot represent.
	HeaderHex rawBytes `json:"header_hex"`
	WantHex   rawBytes `json:"want_hex"`
}

func readPartHeaderCases(t *testing.T) partHeaderCases {
	t.Helper()
	var table partHeaderCases
	readTable(t, "part_header_cases.json", &table)
	if len(table.Files) < 36 || len(table.Fields) < 10 || len(table.Unreadable) < 17 {
		t.Fatalf("the table has only %d files, %d fields, %d unreadable headers", len(table.Files), len(table.Fields), len(table.Unreadable))
	}
	return table
}

// Planted once each and caught here: the base name of Part.FileName; escapeBackslashes left out; a quote
// at the end of the header taken as escaped.
func TestPartFilename_IsWhatTheClientSent(t *testing.T) {
	t.Parallel()
	for _, c := range readPartHeaderCases(t).Files {
		header, want := cmp.Or(string(c.HeaderHex), c.Header), cmp.Or(string(c.WantHex), c.Want)
		got, ok := PartFilename(disposition(header))
		if !ok || got != want {
			t.Errorf("%s: PartFilename(%s) = %q, %v, want %q", c.Why, header, got, ok, want)
		}
		if field, ok := PartField(disposition(header)); !ok || field != "files" {
			t.Errorf("%s: PartField(%s) = %q, %v", c.Why, header, field, ok)
		}
	}
}

func TestPartFilename_FieldIsNoFile(t *testing.T) {
	t.Parallel()
	for _, c := range readPartHeaderCases(t).Fields {
		if name, ok := PartFilename(disposition(c.Header)); ok {
			t.Errorf("%s: PartFilename(%s) = %q, want none", c.Why, c.Header, name)
		}
		if got, ok := PartField(disposition(c.Header)); !ok || got != c.Field {
			t.Errorf("%s: PartField(%s) = %q, %v, want %q", c.Why, c.Header, got, ok, c.Field)
		}
	}
}

func TestPartFilename_UnreadableHeaderIsNeitherFileNorField(t *testing.T) {
	t.Parallel()
	headers := []textproto.MIMEHeader{nil, {}}
	for _, c := range readPartHeaderCases(t).Unreadable {
		headers = append(headers, disposition(c.Header))
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

// A real multipart reader passes on what is tested above: raw bytes reach PartFilename as they were sent.
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

// FuzzPartFilename parses any header, and any name as a client that escapes quotes and backslashes sends
// it.
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
