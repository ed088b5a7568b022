package jsoncheck_test

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/jsoncheck"
)

func TestCheck_AcceptsWhatEveryReaderCanRead(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{
		`{}`, `[]`, `0`, `-0.0`, ` {"a" : [1, 2.5e-300, true, null, "x"]} `, `"\ud83d\ude80"`, `"🚀 Übersicht"`, `"\u0000\\\"\/\b"`, `"\\ud800"`,
		`{"\u00fc":{"b":[{"c":1}]}}`, `1.7976931348623157e308`, `1e-400`, strings.Repeat("1", 300),
		strings.Repeat("[", 500) + strings.Repeat("]", 500), `{"brackets":"` + strings.Repeat("[", 600) + `"}`,
	} {
		if err := jsoncheck.Check([]byte(raw)); err != nil {
			t.Errorf("%.60s: %v", raw, err)
		}
	}
}

// Planted, one after the other: no limit on depth, on the length or the range of numbers, no look at UTF-8 or surrogates; the
// index of an array not counted; the keys of an object not kept.
func TestCheck_RefusesAndNamesThePlace(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		strings.Repeat("[", 501) + strings.Repeat("]", 501):                      "the document is nested more than 500 levels deep",
		strings.Repeat(`{"a":`, 3000) + `1` + strings.Repeat("}", 3000):          "the document is nested more than 500 levels deep",
		`{"params":{"parts":[{"n":1},{"n":` + strings.Repeat("9", 5000) + `}]}}`: "params.parts[1].n is a number of more than 400 characters",
		`{"n":1e400}`:                       "n is a number beyond the range of an IEEE double",
		`[1,-1e309]`:                        "[1] is a number beyond the range of an IEEE double",
		"{\"a\":\"\xff\"}":                  "a has bytes that are not UTF-8",
		"{\"a\":[\"ok\",\"\xed\xa0\x80\"]}": "a[1] has bytes that are not UTF-8",
		"{\"b\xc3\":1}":                     "(a key) has bytes that are not UTF-8",
		`{"a":"\ud800"}`:                    `a has half of a surrogate pair (\ud800 to \udfff)`,
		`{"a":"\udc00x"}`:                   `a has half of a surrogate pair (\ud800 to \udfff)`,
		`{"a":"\ud800\u0041"}`:              `a has half of a surrogate pair (\ud800 to \udfff)`,
		`{"a":"\ud83d\ude80\ud83d"}`:        `a has half of a surrogate pair (\ud800 to \udfff)`,
		`{"a":{"\ud800":1}}`:                `a (a key) has half of a surrogate pair (\ud800 to \udfff)`,
		`1e400`:                             "the document is a number beyond the range of an IEEE double",
	} {
		var fault *jsoncheck.Error
		if err := jsoncheck.Check([]byte(raw)); !errors.As(err, &fault) || err.Error() != want {
			t.Errorf("%.60q: %v, want %s", raw, err, want)
		}
	}
	for _, raw := range []string{``, `{`, `{"a":}`, `nul`, `NaN`, `{"a":1}{}`, `[01]`, `"\x"`, "\"\n\""} {
		if err := jsoncheck.Check([]byte(raw)); !errors.Is(err, jsoncheck.ErrSyntax) {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

// What a client may put into a place is shown, bounded and harmless.
func TestCheck_PlaceIsBounded(t *testing.T) {
	t.Parallel()
	err := jsoncheck.Check([]byte(`{"` + strings.Repeat("k", 1000) + `":{"x\u001b":1e999}}`))
	if err == nil || len(err.Error()) > 300 {
		t.Errorf("%v", err)
	}
}

// The promise, tried on another reader: Python parses all that passes, and what it makes of it is JSON again.
func FuzzCheck_PythonReadsWhatPasses(f *testing.F) {
	for _, seed := range []string{`{"a":[1,2.5,"\ud83d\ude80"]}`, `1e308`, `[[[]]]`, `"\ud800"`, `{"n":123456789012345678901234567890}`} {
		f.Add([]byte(seed))
	}
	const program = `import json, sys; v = json.loads(sys.stdin.buffer.read().decode("utf-8")); json.dumps(v, allow_nan=False).encode("utf-8"); repr(v)`
	f.Fuzz(func(t *testing.T, raw []byte) {
		if jsoncheck.Check(raw) != nil {
			return
		}
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatalf("Go: %v", err)
		}
		cmd := exec.Command("python3", "-c", program)
		cmd.Stdin = strings.NewReader(string(raw))
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("Python: %v\n%s", err, output)
		}
	})
}
