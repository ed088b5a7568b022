package handlers

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
)

func TestParseActivityQuery_EmptyIsAbsent(t *testing.T) {
	t.Parallel()
	for _, query := range []string{"", "type=&source=&peer_id=&before_ts=&since_secs=&since_id=&limit=&order="} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if q, err := parseActivityQuery(values.Get); err != nil || q != (activity.Query{}) {
			t.Errorf("%q: %+v, %v", query, q, err)
		}
	}
}

func TestParseActivityQuery_FirstBadParameterIsNamed(t *testing.T) {
	t.Parallel()
	values := url.Values{"type": {"a b"}, "since_secs": {"0"}}
	_, err := parseActivityQuery(values.Get)
	var r *refusal
	if !errors.As(err, &r) || r.fields["parameter"] != "type" {
		t.Errorf("error %v", err)
	}
}

// Clients in the field send what they have. Planted: each of them refused.
func TestParseActivityQuery_NumbersOutsideTheirRange(t *testing.T) {
	t.Parallel()
	for value, limit := range map[string]int{
		"7": 7, "500": 500, "0": 100, "-1": 100, "1.5": 100, "x": 100, "+5": 100, "٣": 100, "-99999999999999999999": 100, "4294967297": 1<<31 - 1, "99999999999999999999": 1<<31 - 1,
	} {
		if q, err := parseActivityQuery(url.Values{"limit": {value}}.Get); err != nil || q.Limit != limit {
			t.Errorf("limit=%s: %d, %v, want %d", value, q.Limit, err, limit)
		}
	}
	for _, value := range []string{"2592000", "2592001", "4294967297", "99999999999999999999"} {
		if q, err := parseActivityQuery(url.Values{"since_secs": {value}}.Get); err != nil || q.Within != 30*24*time.Hour {
			t.Errorf("since_secs=%s: %s, %v", value, q.Within, err)
		}
	}
}

// FuzzActivityQuery checks that any query is either refused with the name of one of its parameters, or
// accepted as one that the inbox can run.
func FuzzActivityQuery(f *testing.F) {
	parameters := []string{"type", "source", "peer_id", "before_ts", "since_secs", "since_id", "limit", "order"}
	id := "3f0c2f6e-5d0a-4c8e-9a55-1d6d8f2b7a10"
	for _, seed := range []string{
		"", "type=a2a_receive&source=canvas&limit=10", "since_id=" + id + "&order=asc", "since_id=" + id + "&order=desc",
		"before_ts=2026-01-31T12:00:00.5%2B02:00&since_secs=2592000", "peer_id=%00&limit=99999999999999999999", "limit=-1", "since_secs=2592001",
		"before_ts=9999-12-31T23:59:60Z", "type=%ff", "limit=10&limit=x",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		values, _ := url.ParseQuery(raw) // invalid pairs are dropped, as net/http does
		q, err := parseActivityQuery(values.Get)
		if err != nil {
			var r *refusal
			if !errors.As(err, &r) || r.status != http.StatusBadRequest {
				t.Fatalf("%q: %v", raw, err)
			}
			name, _ := r.fields["parameter"].(string)
			if values.Get(name) == "" || !strings.HasPrefix(r.message, name+" must be ") || !strings.Contains(strings.Join(parameters, " "), name) {
				t.Fatalf("%q: %q names %q", raw, r.message, name)
			}
			return
		}
		switch {
		case q.Limit < 0, q.Within < 0, q.Within > 30*24*time.Hour, len(q.Type) > 100, strings.ContainsAny(q.Type, "\x00'\" "):
			t.Fatalf("%q: %+v", raw, q)
		case q.Peer.Valid != (values.Get("peer_id") != ""), q.After.Valid != (values.Get("since_id") != ""):
			t.Fatalf("%q: %+v", raw, q)
		case !q.Peer.Valid && q.Peer.UUID != uuid.Nil:
			t.Fatalf("%q: %+v", raw, q)
		case (values.Get("limit") != "") != (q.Limit > 0), (values.Get("since_secs") != "") != (q.Within > 0):
			t.Fatalf("%q: a number is lost: %+v", raw, q)
		}
	})
}
