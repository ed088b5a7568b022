package uploadname

import (
	"cmp"
	"maps"
	"mime"
	"regexp"
	"testing"
)

// mimeTypeCases is the table that the workspace's tests read too.
type mimeTypeCases struct {
	CommonTypes  map[string]string `json:"common_types"`
	MachineTypes map[string]string `json:"machine_types"` // what the machine knows beyond them
	Cases        []struct {
		Why            string
		ContentType    string   `json:"content_type"`
		ContentTypeHex rawBytes `json:"content_type_hex"` // bytes that are not UTF-8
		Filename       string
		Want           string
	}
}

func readMIMETypeCases(t *testing.T) mimeTypeCases {
	t.Helper()
	var table mimeTypeCases
	readTable(t, "mime_type_cases.json", &table)
	if len(table.Cases) < 39 {
		t.Fatalf("the table has only %d cases", len(table.Cases))
	}
	return table
}

func TestCleanMIMEType_SenderThenExtensionThenUnknown(t *testing.T) {
	t.Parallel()
	table := readMIMETypeCases(t)
	for ext, mimeType := range table.MachineTypes {
		if err := mime.AddExtensionType(ext, mimeType); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range table.Cases {
		contentType := cmp.Or(string(c.ContentTypeHex), c.ContentType)
		if got := CleanMIMEType(contentType, c.Filename); got != c.Want {
			t.Errorf("%s: CleanMIMEType(%q, %q) = %q, want %q", c.Why, contentType, c.Filename, got, c.Want)
		}
	}
}

// Planted: one type more in the table, one less, a different one.
func TestCleanMIMEType_OwnTableIsThatSharedWithPython(t *testing.T) {
	t.Parallel()
	if want := readMIMETypeCases(t).CommonTypes; !maps.Equal(commonMIMETypes, want) {
		t.Errorf("commonMIMETypes is %v, and in the table shared with Python %v", commonMIMETypes, want)
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

// A range is what a picker accepts, not what a file is.
func TestCleanMIMEType_RangeIsNoType(t *testing.T) {
	t.Parallel()
	for contentType, want := range map[string]string{
		"image/*": "image/png", "*/*": "image/png", "*/png": "image/png", "image/*; q=1": "image/png", "image/x*": "image/x*",
	} {
		if got := CleanMIMEType(contentType, "a.png"); got != want {
			t.Errorf("%s: %s, want %s", contentType, got, want)
		}
	}
	if got := CleanMIMEType("image/*", "a"); got != "application/octet-stream" {
		t.Errorf("without an extension: %s", got)
	}
}
