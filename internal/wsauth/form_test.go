package wsauth

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/uuid"
)

var bearerCases = map[string]string{
	"Bearer abc":           "abc",
	"bearer abc":           "abc",
	"BEARER abc":           "abc",
	"Bearer   abc  ":       "abc",
	"Bearer mol_ws_-_0":    "mol_ws_-_0",
	"Bearer a b":           "a b", // no token has a space, so the lookup refuses it
	"":                     "",
	"Bearer":               "",
	"Bearer ":              "",
	"Bearer    ":           "",
	" Bearer abc":          "",
	"Bearer\tabc":          "",
	"Bearer: abc":          "",
	"Bearerabc":            "",
	"Basic dXNlcjpwYXNz":   "",
	"Token abc":            "",
	"abc":                  "",
	"Basic x, Bearer abc":  "",
	"\u212Aearer abc":      "",
	"mol_ws_abc":           "",
	"Bearer\u00a0abc":      "",
	"Bearer \u00a0abc\r\n": "abc",
}

func TestBearer_AcceptsTheBearerSchemeOnly(t *testing.T) {
	t.Parallel()
	for header, want := range bearerCases {
		if got := Bearer(header); got != want {
			t.Errorf("Bearer(%q) = %q, want %q", header, got, want)
		}
	}
}

func FuzzBearer(f *testing.F) {
	for header := range bearerCases {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, header string) {
		token := Bearer(header)
		if token == "" {
			return
		}
		if !strings.Contains(header[len("Bearer "):], token) || token != strings.TrimSpace(token) {
			t.Errorf("Bearer(%q) = %q", header, token)
		}
		if again := Bearer("Bearer " + token); again != token {
			t.Errorf("Bearer of %q is %q when it is sent again", token, again)
		}
	})
}

const goodToken = "mol_ws_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"

var malformedTokens = []string{
	"", "mol_ws_", "mol_ws", goodToken[1:], goodToken[:len(goodToken)-1], goodToken + "A", goodToken + "=", goodToken + "\n", " " + goodToken,
	strings.Replace(goodToken, "mol", "MOL", 1),
	goodToken[:20] + "\n" + goodToken[20:],        // Go's decoder skips line breaks
	goodToken[:len(goodToken)-1] + "9",            // bits beyond the 32 bytes
	strings.Replace(goodToken, "BgcI", "+/cI", 1), // the other alphabet
	"mol_ws_mol_ws_" + goodToken,
}

func TestWellFormed_AcceptsOneSpellingOnly(t *testing.T) {
	t.Parallel()
	if !wellFormed(goodToken) {
		t.Errorf("%q is refused", goodToken)
	}
	for _, s := range malformedTokens {
		if wellFormed(s) {
			t.Errorf("%q is accepted", s)
		}
	}
}

func FuzzWellFormed(f *testing.F) {
	f.Add(goodToken)
	for _, s := range malformedTokens {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !wellFormed(s) {
			return
		}
		secret, err := base64.RawURLEncoding.DecodeString(s[len(tokenPrefix):])
		if err != nil || len(secret) != tokenBytes || tokenPrefix+base64.RawURLEncoding.EncodeToString(secret) != s {
			t.Errorf("%q is accepted, but is not how 32 bytes are written", s)
		}
	})
}

func TestParseUUID_AcceptsTheCanonicalFormOnly(t *testing.T) {
	t.Parallel()
	const canonical = "0123abcd-4567-89ab-cdef-0123456789ab"
	want := uuid.MustParse(canonical)
	if got, err := ParseUUID(canonical); err != nil || got != want {
		t.Errorf("%s: %s, %v", canonical, got, err)
	}
	for _, s := range []string{
		"", "x", canonical[1:], canonical + "0", "{" + canonical + "}", "urn:uuid:" + canonical,
		strings.ReplaceAll(canonical, "-", ""), strings.ReplaceAll(canonical, "-", "_"), strings.Replace(canonical, "a", "g", 1),
		canonical[:35] + "\n", "0123abcd45-67-89ab-cdef-0123456789ab",
	} {
		if id, err := ParseUUID(s); err == nil {
			t.Errorf("%q is accepted as %s", s, id)
		}
	}
}
