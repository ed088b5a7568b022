package handlers_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

var fieldName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// parseLines parses log lines. Each must be one JSON object without duplicate fields: parsers disagree on
// which of two counts, so a duplicate could forge a field.
func parseLines(t testing.TB, text string) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(text) {
		fields := map[string]any{}
		d := json.NewDecoder(strings.NewReader(line))
		if start, err := d.Token(); err != nil || start != json.Delim('{') {
			t.Fatalf("log line is not a JSON object: %q", line)
		}
		for d.More() {
			name, err := d.Token()
			var value any
			if err == nil {
				err = d.Decode(&value)
			}
			if err != nil {
				t.Fatalf("log line is not JSON: %q: %v", line, err)
			}
			if _, twice := fields[name.(string)]; twice || !fieldName.MatchString(name.(string)) {
				t.Fatalf("log line has a duplicate or unexpected field %q: %q", name, line)
			}
			fields[name.(string)] = value
		}
		if _, err := d.Token(); err != nil {
			t.Fatalf("log line is not JSON: %q: %v", line, err)
		}
		if rest, _ := io.ReadAll(d.Buffered()); strings.TrimSpace(string(rest)) != "" {
			t.Fatalf("log line has more than an object: %q", line)
		}
		if !utf8.ValidString(line) || strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\x00\x1b\r\n\u2028\u2029") {
			t.Fatalf("log line has a control character or invalid UTF-8: %q", line)
		}
		lines = append(lines, fields)
	}
	return lines
}

// hostile are values that clients may send as a name, an id, a header or a path.
var hostile = []string{
	"", "a.txt", "\n{\"msg\":\"acked\",\"audit\":true}\n", "\r\n\r\n", `","audit":true,"caller":"admin","x":"`, `\`, `\"`, `\u000a`, "\x00", "\x1b[2J\x1b[31m",
	"\u2028\u2029", "\xff\xfe\xc3\x28", "\xed\xa0\x80", "\u202egnp.exe", "%0a%0d", "%00", "${jndi:ldap://x}", "{{.}}", "%s%n%d", "\t\v\f", "\x7f\x9b",
	"<script>alert(1)</script>", strings.Repeat("A", 5000), strings.Repeat("\n", 100), "é漢字😀", "level=ERROR msg=forged", "../../etc/passwd", "'; DROP TABLE x; --",
}

// header returns the part of s that a client library would send in a header.
func header(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}

// Whatever clients send, every log line is one JSON object with the fields of its own request. Planted: lines
// of text; a duplicate caller; an unchecked X-Forwarded-For.
func FuzzLog_EveryLineIsOneJSONObject(f *testing.F) {
	for _, s := range hostile {
		f.Add(s, s)
		f.Add("a.txt", s)
		f.Add(s, "id")
	}
	p := servertest.Start(f, smallCaps, func(s *config.Settings) { s.TrustedProxies = "127.0.0.1" })
	w := p.Create(f, "poll", "")
	seen := 0
	f.Fuzz(func(t *testing.T, name, other string) {
		send := func(method, path, contentType string, body string) {
			r, err := http.NewRequestWithContext(t.Context(), method, p.URL+path, strings.NewReader(body))
			if err != nil {
				return // no client can send that
			}
			for n, v := range map[string]string{
				"Content-Type": contentType, "X-Request-Id": other, "X-Forwarded-For": other, "User-Agent": other, "Referer": name,
				"Range": "bytes=" + other, "If-None-Match": name, "Idempotency-Key": other, "Last-Event-Id": other, "Traceparent": other,
			} {
				r.Header.Set(n, header(v))
			}
			r.Header.Set("Authorization", "Bearer "+w.Token)
			if strings.Contains(path, "refused") {
				r.Header.Set("Authorization", header(other))
			}
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
		}
		quoted, _ := json.Marshal(name)
		path := "/workspaces/" + w.ID
		multipart := func(disposition string) string {
			return "--b\r\nContent-Disposition: form-data; name=\"files\"; " + disposition + "\r\nContent-Type: " + other + "\r\n\r\nx\r\n--b--\r\n"
		}
		const form = "multipart/form-data; boundary=b"
		send("POST", path+"/chat/uploads", form, multipart("filename*=UTF-8''"+url.PathEscape(name)))
		send("POST", path+"/chat/uploads", form, multipart(`filename="`+name+`"`))
		send("POST", path+"/chat/uploads", other, name)
		send("POST", path+"/a2a", "application/json", fmt.Sprintf(`{"method":%s,"params":{}}`, quoted))
		send("POST", path+"/a2a", "application/json", name)
		send("POST", "/registry/register", "application/json", fmt.Sprintf(`{"id":%s,"agent_card":{},"delivery_mode":%s,"url":%s}`, quoted, quoted, quoted))
		send("GET", path+"/activity?type="+url.QueryEscape(name)+"&source="+url.QueryEscape(other), "", "")
		send("GET", path+"/pending-uploads/"+url.PathEscape(name)+"/content", "", "")
		send("GET", "/workspaces/"+url.PathEscape(name)+"?refused", "", "")
		send("GET", "/"+url.PathEscape(name)+"?"+url.QueryEscape(other), "", "")

		text := p.Logs.String()
		whole := strings.LastIndexByte(text, '\n') + 1
		for _, line := range parseLines(t, text[seen:whole]) {
			if line["msg"] == "acked" || line["caller"] == "admin" && line["msg"] != "workspace created" && seen > 0 {
				t.Errorf("forged line %v", line)
			}
			if ip, ok := line["client_ip"].(string); ok && strings.Trim(ip, "0123456789abcdef.:") != "" {
				t.Errorf("client_ip is %q", ip)
			}
		}
		seen = whole
	})
}

// Without this test a broken parseLines would make the test above pass. Planted: as there.
func TestLog_ParseLinesSeesForgeries(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"level=INFO msg=x\n", `{"msg":"x"` + "\n", `{"msg":"x"}{"msg":"y"}` + "\n", `{"msg":"x","caller":"a","caller":"admin"}` + "\n", `"x"` + "\n",
		"{\"msg\":\"a\u2028b\"}\n", "{\"msg\":\"\xff\"}\n", `{"msg":"x","fo rged":1}` + "\n",
	} {
		failed := &failing{TB: t}
		func() {
			defer func() { _ = recover() }()
			parseLines(failed, text)
		}()
		if !failed.failed {
			t.Errorf("accepted %q", text)
		}
	}
	if lines := parseLines(t, `{"msg":"x"}`+"\n"); len(lines) != 1 || lines[0]["msg"] != "x" {
		t.Errorf("%v", lines)
	}
}

// failing records a failure instead of failing the test.
type failing struct {
	testing.TB
	failed bool
}

func (f *failing) Helper() {}

func (f *failing) Fatalf(string, ...any) {
	f.failed = true
	panic("failed")
}
