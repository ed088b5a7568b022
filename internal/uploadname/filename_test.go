package uploadname

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"mime"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// workspaceDir has the Python code whose rule for names is the reference.
var workspaceDir = filepath.Join("..", "..", "workspace")

var namesSeed = flag.Uint64("names.seed", 0, "seed of the generated file names; 0 picks a new one")

// readTable reads a table of cases that Go and Python are both tested against.
func readTable(t *testing.T, name string, table any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(workspaceDir, "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(table); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// rawBytes is written as hex in a table.
type rawBytes []byte

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *rawBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// Planted once each and caught here: filepath.Base for the last component; a cut that loses the extension;
// one underscore a byte; 17 for the extension's 16.
func TestSanitizeFilename_FollowsTheTableSharedWithPython(t *testing.T) {
	t.Parallel()
	var table struct {
		Cases []struct{ Name, Want, Why string }
	}
	readTable(t, "sanitize_filename_cases.json", &table)
	if len(table.Cases) < 60 {
		t.Fatalf("the table has only %d cases", len(table.Cases))
	}
	for _, c := range table.Cases {
		if got := SanitizeFilename(c.Name); got != c.Want {
			t.Errorf("%s: SanitizeFilename(%q) = %q, want %q", c.Why, c.Name, got, c.Want)
		}
		if got := ValidFilename(c.Name); got != (c.Name == c.Want) {
			t.Errorf("%s: ValidFilename(%q) = %v", c.Why, c.Name, got)
		}
		if !ValidFilename(c.Want) {
			t.Errorf("%s: the sanitized name %q is not valid", c.Why, c.Want)
		}
	}
}

// pythonSanitizer reads and writes one name a line, as the hex of its bytes.
const pythonSanitizer = `
import sys
from internal_chat_uploads import sanitize_filename
for line in sys.stdin:
    name = bytes.fromhex(line.strip()).decode("utf-8", "surrogateescape")
    print(sanitize_filename(name).encode("utf-8", "surrogateescape").hex())
`

// workspacePython returns the Python interpreter that has the workspace's dependencies.
func workspacePython(t *testing.T) string {
	t.Helper()
	python, err := filepath.Abs(filepath.Join(workspaceDir, "..", ".venv", "bin", "python"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(python); err != nil {
		t.Fatalf("there is no .venv/bin/python in the repository; run 'make setup-test' first (%v)", err)
	}
	return python
}

func TestSanitizeFilename_AgreesWithPythonOnGeneratedNames(t *testing.T) {
	t.Parallel()
	const count = 100_000
	seed := *namesSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-names.seed=%d", seed)

	rng := rand.New(rand.NewPCG(seed, 0))
	names := make([]string, count)
	var lines bytes.Buffer
	for i := range names {
		names[i] = randomName(rng)
		lines.WriteString(hex.EncodeToString([]byte(names[i])) + "\n")
	}
	requireVariety(t, names)

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, workspacePython(t), "-c", pythonSanitizer)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+workspaceDir, "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stdin = &lines
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python: %v\n%s", err, stderr.String())
	}

	answers := strings.Fields(string(out))
	if len(answers) != count {
		t.Fatalf("python answered %d names of %d", len(answers), count)
	}
	differences := 0
	for i, name := range names {
		want, err := hex.DecodeString(answers[i])
		if err != nil {
			t.Fatal(err)
		}
		if got := SanitizeFilename(name); got != string(want) {
			differences++
			if differences <= 20 {
				t.Errorf("SanitizeFilename(%+q) = %q, Python says %q", name, got, want)
			}
		}
	}
	t.Logf("%d names, %d differences", count, differences)
}

// requireVariety fails the test unless there are many names of every kind on which the two languages could
// disagree.
func requireVariety(t *testing.T, names []string) {
	t.Helper()
	length := func(base string, n int) bool { return utf8.RuneCountInString(base) == n }
	tooLong := func(base string, ext int) bool {
		return utf8.RuneCountInString(base) > 100 && length(filepath.Ext(base), ext)
	}
	for kind, is := range map[string]func(name, base string) bool{
		"invalid UTF-8":  func(name, _ string) bool { return !utf8.ValidString(name) },
		"control":        func(_, base string) bool { return strings.ContainsFunc(base, unicode.IsControl) },
		"astral":         func(_, base string) bool { return strings.ContainsFunc(base, func(r rune) bool { return r > 0xffff }) },
		"path":           func(name, base string) bool { return base != name && base != "" },
		"trailing slash": func(name, base string) bool { return base == "" && name != "" },
		"no name":        func(_, base string) bool { return base == "" || base == "." || base == ".." },
		"99 long":        func(_, base string) bool { return length(base, 99) },
		"100 long":       func(_, base string) bool { return length(base, 100) },
		"101 long":       func(_, base string) bool { return length(base, 101) },
		"extension 15":   func(_, base string) bool { return tooLong(base, 15) },
		"extension 16":   func(_, base string) bool { return tooLong(base, 16) },
		"extension 17":   func(_, base string) bool { return tooLong(base, 17) },
	} {
		n := 0
		for _, name := range names {
			if is(name, name[strings.LastIndexByte(name, '/')+1:]) {
				n++
			}
		}
		if n < 500 {
			t.Errorf("only %d of %d generated names are of the kind %q", n, len(names), kind)
		}
	}
}

// randomName returns a name of a path, a stem and an extension, with characters of one kind or of all
// kinds, often near a length that matters.
func randomName(rng *rand.Rand) string {
	kinds := charKinds
	if k := rng.IntN(len(charKinds) + 1); k < len(charKinds) {
		kinds = charKinds[k : k+1]
	}
	var b strings.Builder
	write := func(n int) {
		for range n {
			b.WriteString(kinds[rng.IntN(len(kinds))](rng))
		}
	}
	for range max(0, rng.IntN(6)-3) {
		write(rng.IntN(120))
		b.WriteByte('/')
	}
	if rng.IntN(20) == 0 {
		return b.String() + []string{"", ".", "..", "...", "file", "/"}[rng.IntN(6)]
	}
	ext := []int{0, 0, 1, 4, 15, 16, 17, 1 + rng.IntN(30)}[rng.IntN(8)]
	length := []int{rng.IntN(40), 99, 100, 101, 90 + rng.IntN(25), rng.IntN(320)}[rng.IntN(6)]
	write(max(0, length-ext))
	if ext > 0 {
		b.WriteByte('.')
		write(ext - 1)
	}
	if rng.IntN(25) == 0 {
		b.WriteByte('/')
	}
	return b.String()
}

// charKinds each return one character, or bytes that stand for one.
var charKinds = []func(*rand.Rand) string{
	func(rng *rand.Rand) string { // allowed
		const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
		return string(allowed[rng.IntN(len(allowed))])
	},
	func(rng *rand.Rand) string { // ASCII, with dots and slashes
		return string(rune(rng.IntN(128)))
	},
	func(rng *rand.Rand) string { // control characters
		return string(rune(rng.IntN(32)))
	},
	func(rng *rand.Rand) string { // any code point; a surrogate becomes U+FFFD
		return string(rune(rng.IntN(unicode.MaxRune + 1)))
	},
	func(rng *rand.Rand) string { // two bytes, combining marks among them
		return string(rune(0x80 + rng.IntN(0x800-0x80)))
	},
	func(rng *rand.Rand) string { // one byte that is not UTF-8 by itself
		return string([]byte{byte(0x80 + rng.IntN(0x80))})
	},
	func(rng *rand.Rand) string { // cut short, overlong, surrogate, too large
		return []string{
			"\xc3", "\xe2\x82", "\xf0\x9f\x98", "\xc0\xaf", "\xe0\x80\xaf",
			"\xed\xa0\x80", "\xed\xbf\xbf", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80",
		}[rng.IntN(9)]
	},
	func(rng *rand.Rand) string { // what the rule treats in its own way
		return string("./ _-\\"[rng.IntN(6)])
	},
}

var acceptableName = regexp.MustCompile(`\A[A-Za-z0-9._-]{1,100}\z`)

// hostileNames seed the fuzz targets that take a name.
var hostileNames = []string{
	"", ".", "..", "dir/", "../../etc/passwd", "a b.txt", `q"uo\te`, "x\r\ny: z", "\x00", "\xff\xfe",
	"日本語.txt", "😀", strings.Repeat("a", 300) + ".txt", strings.Repeat("é", 99) + "." + strings.Repeat("x", 15),
}

func FuzzSanitizeFilename(f *testing.F) {
	for _, name := range hostileNames {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		clean := SanitizeFilename(name)
		if !acceptableName.MatchString(clean) || clean == "." || clean == ".." {
			t.Errorf("SanitizeFilename(%q) = %q, which no workspace accepts", name, clean)
		}
		if again := SanitizeFilename(clean); again != clean {
			t.Errorf("SanitizeFilename(%q) = %q, and of that %q", name, clean, again)
		}
		if !ValidFilename(clean) || ValidFilename(name) != (name == clean) {
			t.Errorf("ValidFilename does not agree that %q becomes %q", name, clean)
		}
	})
}

func TestContentDisposition_IsAnAttachmentUnderTheSanitizedName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"report.pdf":            `attachment; filename="report.pdf"`,
		"my file.txt":           `attachment; filename="my_file.txt"`,
		"x\"; filename=\"y.exe": `attachment; filename="x___filename__y.exe"`,
		"x\r\nSet-Cookie: a=b":  `attachment; filename="x__Set-Cookie__a_b"`,
		"../..":                 `attachment; filename="file"`,
	} {
		if got := ContentDisposition(name); got != want {
			t.Errorf("ContentDisposition(%q) = %s, want %s", name, got, want)
		}
	}
}

func FuzzContentDisposition(f *testing.F) {
	for _, name := range hostileNames {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		header := ContentDisposition(name)
		disposition, params, err := mime.ParseMediaType(header)
		if err != nil || disposition != "attachment" || len(params) != 1 {
			t.Fatalf("ContentDisposition(%q) = %s: parsed as %q %q, %v", name, header, disposition, params, err)
		}
		if want := SanitizeFilename(name); params["filename"] != want {
			t.Errorf("ContentDisposition(%q) = %s: parsed back as %q, want %q", name, header, params["filename"], want)
		}
	})
}
