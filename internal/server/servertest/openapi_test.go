package servertest

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const (
	anyID     = "3f0c2f6e-5d0a-4c8e-9a55-1d6d8f2b7a10"
	workspace = `{"id":"` + anyID + `","name":"","status":"online","delivery_mode":"poll","last_heartbeat_at":null,"created_at":"2026-05-05T10:00:00Z"}`
	sandbox   = "sandbox; default-src 'none'; frame-ancestors 'none'"
)

// An answer that is as it must be, and how to spoil it: what the check is worth shows here.
func TestCheck_SeesWhatIsNotInTheFile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method, path string
		status       int
		header       string // beyond those of every answer, as "Name: value; …"
		body         string
		want         string // of the complaint; "": none
	}{
		"good":                      {path: "/workspaces/" + anyID, status: 200, body: workspace},
		"undocumented status":       {path: "/workspaces/" + anyID, status: 202, body: workspace, want: "no status 202"},
		"missing field":             {path: "/workspaces/" + anyID, status: 200, body: strings.Replace(workspace, `"name":"",`, "", 1), want: "name"},
		"further field":             {path: "/workspaces/" + anyID, status: 200, body: strings.Replace(workspace, "{", `{"url":"",`, 1), want: "url"},
		"wrong type":                {path: "/workspaces/" + anyID, status: 200, body: strings.Replace(workspace, `"name":""`, `"name":1`, 1), want: "name"},
		"null where there is none":  {path: "/workspaces/" + anyID, status: 200, body: strings.Replace(workspace, `"name":""`, `"name":null`, 1), want: "name"},
		"other word":                {path: "/workspaces/" + anyID, status: 200, body: strings.Replace(workspace, "online", "removed", 1), want: "status"},
		"time with an offset":       {path: "/workspaces/" + anyID, status: 200, body: strings.Replace(workspace, "00Z", "00+02:00", 1), want: "created_at"},
		"no UUID":                   {path: "/workspaces/" + anyID, status: 200, body: strings.Replace(workspace, "3f0c2f6e", "3f0c2f6", 1), want: "id"},
		"not JSON":                  {path: "/workspaces/" + anyID, status: 200, body: "{", want: "decode"},
		"no body":                   {path: "/workspaces/" + anyID, status: 200, want: "decode"},
		"wrong content type":        {path: "/workspaces/" + anyID, status: 200, header: "Content-Type: text/html", body: workspace, want: "Content-Type"},
		"missing header":            {path: "/workspaces/" + anyID, status: 401, body: `{"error":"missing or invalid token for this workspace","code":"unauthorized"}`, want: "WWW-Authenticate"},
		"further header":            {path: "/workspaces/" + anyID, status: 200, header: "X-Powered-By: gin", body: workspace, want: "X-Powered-By"},
		"insane request id":         {path: "/workspaces/" + anyID, status: 200, header: "X-Request-ID: a b", body: workspace, want: "X-Request-ID"},
		"error":                     {path: "/workspaces/" + anyID, status: 404, body: `{"error":"workspace not found","code":"workspace_not_found"}`},
		"error of another text":     {path: "/workspaces/" + anyID, status: 404, body: `{"error":"no such workspace","code":"workspace_not_found"}`, want: "error"},
		"error of another code":     {path: "/workspaces/" + anyID, status: 404, body: `{"error":"workspace not found","code":"not_found"}`, want: "code"},
		"error with a cause":        {path: "/workspaces/" + anyID, status: 500, body: `{"error":"x","code":"internal","cause":"pq"}`, want: "cause"},
		"error without its field":   {method: "POST", path: "/workspaces", status: 413, body: `{"error":"request body exceeds limit","code":"request_too_large"}`, want: "max"},
		"parameter it forbids":      {path: "/workspaces/" + anyID + "/activity?since_secs=0", status: 200, body: "[]", want: "since_secs"},
		"path parameter it forbids": {path: "/workspaces/x", status: 200, body: workspace, want: "id"},
		"unknown path":              {path: "/nowhere", status: 404, body: `{"error":"x","code":"not_found"}`},
		"unknown path is served":    {path: "/nowhere", status: 200, body: `{}`, want: "404"},
		"other method":              {method: "PUT", path: "/health", status: 405, header: "Allow: GET", body: `{"error":"x","code":"method_not_allowed"}`},
		"other method, no Allow":    {method: "PUT", path: "/health", status: 405, body: `{"error":"x","code":"method_not_allowed"}`, want: "Allow"},
		"other method is served":    {method: "HEAD", path: "/uploads/limits", status: 200, want: "405"},
		"HEAD without its headers":  {method: "HEAD", path: "/workspaces/" + anyID + "/pending-uploads/" + anyID + "/content", status: 200, want: "header"},
		"304 without its headers":   {path: "/workspaces/" + anyID + "/pending-uploads/" + anyID + "/content", status: 304, want: "header"},
		"304 with a body":           {path: "/workspaces/" + anyID + "/pending-uploads/" + anyID + "/content", status: 304, body: "x", want: "body"},
		"relayed":                   {method: "POST", path: "/workspaces/" + anyID + "/a2a", status: 418, header: "Content-Type: text/html; X-Content-Type-Options: nosniff; csp", body: "<p>"},
		"relayed, to be sniffed":    {method: "POST", path: "/workspaces/" + anyID + "/a2a", status: 418, header: "Content-Type: text/html; csp", body: "<p>", want: "X-Content-Type-Options"},
		"not relayed":               {method: "POST", path: "/workspaces/" + anyID + "/a2a", status: 418, body: "<p>", want: "no status 418"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			contract, err := loadContract()
			if err != nil {
				t.Fatal(err)
			}
			answer := &http.Response{StatusCode: c.status, Header: http.Header{
				"X-Request-Id": {"1"}, "Content-Type": {"application/json; charset=utf-8"}, "Date": {"now"},
			}}
			for pair := range strings.SplitSeq(c.header, "; ") {
				if name, value, ok := strings.Cut(pair, ": "); ok {
					answer.Header.Set(name, value)
				} else if pair == "csp" {
					answer.Header.Set("Content-Security-Policy", sandbox)
				}
			}
			err = contract.check(httptest.NewRequest(c.method, c.path, nil), answer, []byte(c.body))
			switch {
			case c.want == "" && err != nil:
				t.Errorf("complains: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("complaint %v, want one about %s", err, c.want)
			}
		})
	}
}
