package metrics_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
	"github.com/molecule-ai/platform/internal/server"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

// testTimeout bounds a test's wait for an expected result.
const testTimeout = 20 * time.Second

// families are the metric families of a scrape, by name.
type families map[string]*dto.MetricFamily

func scrape(t testing.TB, p *servertest.Platform) families {
	t.Helper()
	r := p.Do(t, servertest.Request{Path: "/metrics"})
	if r.Status != http.StatusOK {
		t.Fatalf("scrape: %d %s", r.Status, r.Body)
	}
	return parse(t, r.Body)
}

func parse(t testing.TB, text []byte) families {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("scrape: %v", err)
	}
	return all
}

// value returns the value of the metric with these labels, each as "name=value"; for a histogram the number of
// observations. -1 if there is none.
func (f families) value(name string, labels ...string) float64 {
	for _, m := range f[name].GetMetric() {
		present := map[string]bool{}
		for _, l := range m.GetLabel() {
			present[l.GetName()+"="+l.GetValue()] = true
		}
		found := true
		for _, l := range labels {
			found = found && present[l]
		}
		switch {
		case !found:
		case m.Histogram != nil:
			return float64(m.GetHistogram().GetSampleCount())
		default:
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return -1
}

// upload stages files of these sizes.
func upload(t testing.TB, p *servertest.Platform, w servertest.Workspace, sizes ...int) (ids []string, r *servertest.Response) {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for _, size := range sizes {
		part, err := form.CreateFormFile("files", "a.bin")
		if err == nil {
			_, err = part.Write(make([]byte, size))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	r = p.Do(t, servertest.Request{Method: http.MethodPost, Path: "/workspaces/" + w.ID + "/chat/uploads", Token: w.Token,
		Header: http.Header{"Content-Type": {form.FormDataContentType()}}, Body: &body})
	var answer struct{ Files []struct{ URI string } }
	r.JSON(t, &answer)
	for _, f := range answer.Files {
		ids = append(ids, f.URI[strings.LastIndexByte(f.URI, '/')+1:])
	}
	return ids, r
}

// traffic produces at least one of every counted event.
func traffic(t testing.TB, p *servertest.Platform) {
	t.Helper()
	w := p.Create(t, "poll", "")
	path := "/workspaces/" + w.ID
	do := func(want int, r servertest.Request) {
		t.Helper()
		if got := p.Do(t, r); got.Status != want {
			t.Fatalf("%s %s: %d %s, want %d", r.Method, r.Path, got.Status, got.Body, want)
		}
	}
	ids, _ := upload(t, p, w, 1000, 0, 30)
	if len(ids) != 3 {
		t.Fatalf("%d files staged", len(ids))
	}
	if _, r := upload(t, p, w, 5000); r.Status != http.StatusRequestEntityTooLarge {
		t.Fatalf("too large: %d", r.Status)
	}
	do(http.StatusOK, servertest.Request{Path: path + "/activity", Token: w.Token})
	content := path + "/pending-uploads/" + ids[0] + "/content"
	do(http.StatusPartialContent, servertest.Request{Path: content, Token: w.Token, Header: http.Header{"Range": {"bytes=0-9"}}})
	do(http.StatusOK, servertest.Request{Path: content, Token: w.Token})
	do(http.StatusOK, servertest.Request{Path: content, Token: w.Token})
	do(http.StatusRequestedRangeNotSatisfiable, servertest.Request{Path: content, Token: w.Token, Header: http.Header{"Range": {"bytes=1000-"}}})
	for range 2 {
		do(http.StatusOK, servertest.Request{Method: http.MethodPost, Path: path + "/pending-uploads/" + ids[0] + "/ack", Token: w.Token})
	}
	do(http.StatusUnauthorized, servertest.Request{Path: path, Token: "wrong"})
	do(http.StatusNotFound, servertest.Request{Path: "/nowhere"})
}

func smallFiles(s *config.Settings) { s.MaxFileBytes = "2000" }

// Planted faults: each of the calls in handlers left out; repeated acks and fetches counted; acked or expired files
// counted in the backlog.
func TestScrape_ReportsWhatHappened(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, smallFiles)
	traffic(t, p)
	const uploads, content = "route=/workspaces/:id/chat/uploads", "route=/workspaces/:id/pending-uploads/:file_id/content"
	want := map[string]float64{
		"molecule_staged_files_total":                                     3,
		"molecule_staged_bytes_total":                                     1030,
		"molecule_fetched_files_total":                                    1,
		"molecule_fetched_bytes_total":                                    1000,
		"molecule_content_sent_bytes_total":                               2010,
		"molecule_acked_files_total":                                      1,
		"molecule_acked_bytes_total":                                      1000,
		"molecule_staged_to_acked_seconds":                                1,
		"molecule_unacked_files":                                          2,
		"molecule_unacked_bytes":                                          30,
		"molecule_database_up":                                            1,
		"molecule_spooled_bytes":                                          0,
		"molecule_pending_ttl_seconds":                                    86400,
		"molecule_sweep_errors_total":                                     0,
		"molecule_sweep_duration_seconds":                                 1,
		"molecule_http_requests_total method=GET status=2xx " + content:   3,
		"molecule_http_requests_total method=GET status=4xx " + content:   1,
		"molecule_http_requests_total method=GET status=4xx route=none":   1,
		"molecule_refusals_total code=file_too_large " + uploads:          1,
		"molecule_refusals_total code=range_not_satisfiable " + content:   1,
		"molecule_refusals_total code=unauthorized route=/workspaces/:id": 1,
		"molecule_refusals_total code=not_found route=none":               1,
		"molecule_request_duration_seconds operation=upload":              1,
		"molecule_request_duration_seconds operation=content":             3,
		"molecule_request_duration_seconds operation=ack":                 2,
		"molecule_request_duration_seconds operation=poll":                1,
		"molecule_requests_in_flight operation=upload":                    0,
		"molecule_requests_in_flight_limit operation=upload":              256,
		"go_sql_max_open_connections db_name=main":                        11,
		"go_sql_max_open_connections db_name=staging":                     8,
	}
	// A request is counted after its answer was sent, and the first sweep may not have ended yet.
	var got families
	wrong := func() (problems []string) {
		for name, n := range want {
			name, labels, _ := strings.Cut(name, " ")
			if v := got.value(name, strings.Fields(labels)...); v != n {
				problems = append(problems, fmt.Sprintf("%s %s is %v, want %v", name, labels, v, n))
			}
		}
		return problems
	}
	for deadline := time.Now().Add(testTimeout); ; {
		got = scrape(t, p)
		if problems := wrong(); len(problems) == 0 {
			break
		} else if time.Now().After(deadline) {
			t.Error(strings.Join(problems, "\n"))
			break
		}
	}
	if age := got.value("molecule_unacked_oldest_age_seconds"); age <= 0 || age > 60 {
		t.Errorf("the oldest file is %v s old", age)
	}
	if n := got.value("molecule_refused_upload_bytes_total", "code=file_too_large"); n < 2000 {
		t.Errorf("%v bytes were received for a refused upload", n)
	}
	for name, f := range got {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if len(l.GetValue()) >= 32 && strings.Count(l.GetValue(), "-") >= 4 {
					t.Errorf("%s has the label %s: %s: label values must not be ids", name, l.GetName(), l.GetValue())
				}
			}
		}
	}
}

// Planted fault: the values from before the failure reported on.
func TestScrape_WorksWhileTheDatabaseIsDown(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	w := p.Create(t, "poll", "")
	upload(t, p, w, 1)
	ctx := context.WithoutCancel(t.Context())
	operator := pgtest.Open(t, pgtest.Server().DSN("postgres"))
	var name string
	if err := p.DB.QueryRowContext(ctx, `SELECT current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	allow := func(db *sql.DB, yes bool) {
		t.Helper()
		if _, err := db.ExecContext(ctx, fmt.Sprintf(`ALTER DATABASE %q ALLOW_CONNECTIONS %t`, name, yes)); err != nil {
			t.Fatal(err)
		}
	}
	allow(operator, false)
	t.Cleanup(func() { allow(operator, true) })
	if _, err := operator.ExecContext(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1`, name); err != nil {
		t.Fatal(err)
	}
	got := scrape(t, p)
	if up := got.value("molecule_database_up"); up != 0 {
		t.Errorf("molecule_database_up is %v, want 0", up)
	}
	if files := got.value("molecule_unacked_files"); files != -1 {
		t.Errorf("%v files are reported, though the database cannot be queried", files)
	}
	if got.value("molecule_staged_files_total") != 1 || got.value("go_goroutines") <= 0 {
		t.Error("the other metrics are missing")
	}
	allow(operator, true)
	for deadline := time.Now().Add(testTimeout); ; {
		got = scrape(t, p)
		if got.value("molecule_database_up") == 1 && got.value("molecule_unacked_files") == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the database answers again, and molecule_database_up is not 1")
		}
	}
}

// Planted faults: metrics on both addresses; everything else on the second one.
func TestScrape_OnlyOnMetricsAddrIfSet(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, func(s *config.Settings) { s.MetricsAddr = "127.0.0.1:0" })
	if r := p.Do(t, servertest.Request{Path: "/metrics"}); r.Status != http.StatusNotFound {
		t.Errorf("on the public address: %d", r.Status)
	}
	started := p.Logs.Lines(t, "serving")
	for deadline := time.Now().Add(testTimeout); len(started) != 1; started = p.Logs.Lines(t, "serving") {
		if time.Now().After(deadline) {
			t.Fatalf("log: %v", started)
		}
	}
	own := *p
	own.URL = fmt.Sprint("http://", started[0]["metrics_addr"])
	if own.URL == p.URL {
		t.Fatal("metrics_addr is the same address as addr")
	}
	if up := scrape(t, &own).value("molecule_database_up"); up != 1 {
		t.Errorf("molecule_database_up is %v", up)
	}
	answer, err := http.Get(own.URL + "/health")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusNotFound {
		t.Errorf("other paths: %d", answer.StatusCode)
	}
}

// An address in use is reported by the name of the setting, as for ADDR.
func TestStart_RefusesATakenMetricsAddress(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t)
	settings := servertest.Settings(t)
	settings.DatabaseURL, settings.MetricsAddr = pgtest.New(t), strings.TrimPrefix(p.URL, "http://")
	c, err := settings.Load()
	if err != nil {
		t.Fatal(err)
	}
	if _, err = server.New(t.Context(), c, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "--metrics-addr") {
		t.Errorf("%v, want a sentence that names --metrics-addr", err)
	}
}
