package metrics_test

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/molecule-ai/platform/internal/metrics"
)

// all calls every method once.
func all(p *metrics.Platform) {
	p.Request("/r", "GET", "upload")(200)
	p.Refused("/r", "code")
	p.Staged(10)
	p.Replayed()
	p.Fetched(10)
	p.Sent(10)
	p.Acked(10, time.Second)
	p.Swept(metrics.Sweep{AckedFiles: 1, Duration: time.Second})
	spool := p.Spool()
	_, _ = io.Copy(io.Discard, spool.Body(io.NopCloser(strings.NewReader("0123456789"))))
	spool.Done("code")
	spool.Done("code")
}

// Planted faults: a counter without _total; a duration in milliseconds; a metric without help.
func TestNames_FollowTheConventions(t *testing.T) {
	t.Parallel()
	p := metrics.New(metrics.Options{Version: "1", Limits: map[string]int{"upload": 1}})
	all(p)
	problems, err := testutil.GatherAndLint(p.Gatherer())
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
	families, err := p.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		name := f.GetName()
		if !strings.HasPrefix(name, "molecule_") && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
			t.Errorf("%s does not begin with molecule_", name)
		}
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
	}
}

func TestPlatform_NilCountsNothing(t *testing.T) {
	t.Parallel()
	var p *metrics.Platform
	all(p)
	p.WatchPool("x", nil)
	p.WatchDatabase(nil, nil)
}

// Two platforms in one process are counted separately. Planted fault: the library's global registry.
func TestNew_HasARegistryOfItsOwn(t *testing.T) {
	t.Parallel()
	first, second := metrics.New(metrics.Options{}), metrics.New(metrics.Options{})
	first.Staged(10)
	for p, want := range map[*metrics.Platform]string{first: "1", second: "0"} {
		compare(t, p, "molecule_staged_files_total", "# HELP molecule_staged_files_total Files staged.\n# TYPE molecule_staged_files_total counter\nmolecule_staged_files_total "+want+"\n")
	}
}

func compare(t *testing.T, p *metrics.Platform, name, want string) {
	t.Helper()
	if err := testutil.GatherAndCompare(p.Gatherer(), strings.NewReader(want), name); err != nil {
		t.Error(err)
	}
}

// Clients choose methods and paths, and each label value stays in memory. Planted fault: the method as it was sent.
func TestRequest_LabelsAreBounded(t *testing.T) {
	t.Parallel()
	p := metrics.New(metrics.Options{})
	for _, method := range []string{"GET", "BREW", "get", strings.Repeat("X", 1000)} {
		p.Request("", method, "")(404)
	}
	p.Refused("", "not_found")
	compare(t, p, "molecule_http_requests_total", `# HELP molecule_http_requests_total Requests answered, by route, method and status class.
# TYPE molecule_http_requests_total counter
molecule_http_requests_total{method="GET",route="none",status="4xx"} 1
molecule_http_requests_total{method="other",route="none",status="4xx"} 3
`)
	compare(t, p, "molecule_refusals_total", `# HELP molecule_refusals_total Requests refused or failed, by route and error code.
# TYPE molecule_refusals_total counter
molecule_refusals_total{code="not_found",route="none"} 1
`)
}

// Refusals are fast, and would hide slow uploads. Planted faults: all requests timed; a request that stays in flight
// after its end.
func TestRequest_TimesOnlySuccessfulRequests(t *testing.T) {
	t.Parallel()
	p := metrics.New(metrics.Options{})
	held := p.Request("/r", "POST", "upload")
	p.Request("/r", "POST", "upload")(503)
	p.Request("/r", "POST", "upload")(200)
	p.Request("/other", "POST", "")(200)
	compare(t, p, "molecule_requests_in_flight", inFlight("1"))
	held(413)
	compare(t, p, "molecule_requests_in_flight", inFlight("0"))
	families, err := p.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "molecule_request_duration_seconds" && (len(f.GetMetric()) != 1 || f.GetMetric()[0].GetHistogram().GetSampleCount() != 1) {
			t.Errorf("timed: %v", f.GetMetric())
		}
	}
}

func inFlight(n string) string {
	return `# HELP molecule_requests_in_flight Requests in progress, by operation; wait (held polls) and stream (event streams) are idle most of the time.
# TYPE molecule_requests_in_flight gauge
molecule_requests_in_flight{operation="upload"} ` + n + "\n"
}

// Planted faults: bytes still counted when the upload has ended; Done that counts twice; bytes drained after the
// refusal counted as held.
func TestSpool_HoldsUntilDone(t *testing.T) {
	t.Parallel()
	p := metrics.New(metrics.Options{})
	kept, refused := p.Spool(), p.Spool()
	for _, s := range []*metrics.Spool{kept, refused} {
		if _, err := io.Copy(io.Discard, s.Body(io.NopCloser(strings.NewReader("0123456789")))); err != nil {
			t.Fatal(err)
		}
	}
	spooled := func(n string) {
		t.Helper()
		compare(t, p, "molecule_spooled_bytes", "# HELP molecule_spooled_bytes Bytes received of uploads in flight, in memory and temporary files.\n# TYPE molecule_spooled_bytes gauge\nmolecule_spooled_bytes "+n+"\n")
	}
	spooled("20")
	refused.Done("file_too_large")
	refused.Done("")
	refused.Done("file_too_large")
	if _, err := io.Copy(io.Discard, refused.Body(io.NopCloser(strings.NewReader("more")))); err != nil {
		t.Fatal(err)
	}
	spooled("10")
	kept.Done("")
	spooled("0")
	compare(t, p, "molecule_refused_upload_bytes_total", `# HELP molecule_refused_upload_bytes_total Bytes received for uploads that were then refused, by error code.
# TYPE molecule_refused_upload_bytes_total counter
molecule_refused_upload_bytes_total{code="file_too_large"} 10
`)
}

// Planted faults: a failure that counts as a success; sizes of expired and acked files confused.
func TestSwept_CountsDeletionsOfAFailedSweepToo(t *testing.T) {
	t.Parallel()
	p := metrics.New(metrics.Options{})
	p.Swept(metrics.Sweep{AckedFiles: 1, ExpiredFiles: 2, AckedBytes: 30, ExpiredBytes: 40, InboxRows: 5, Err: io.ErrUnexpectedEOF})
	compare(t, p, "molecule_sweep_last_success_timestamp_seconds", `# HELP molecule_sweep_last_success_timestamp_seconds Time of the last successful sweep; 0 if none succeeded since the start.
# TYPE molecule_sweep_last_success_timestamp_seconds gauge
molecule_sweep_last_success_timestamp_seconds 0
`)
	compare(t, p, "molecule_swept_files_total", `# HELP molecule_swept_files_total Files deleted by this replica, by state: acked, or expired without an ack.
# TYPE molecule_swept_files_total counter
molecule_swept_files_total{state="acked"} 1
molecule_swept_files_total{state="expired"} 2
`)
	compare(t, p, "molecule_swept_bytes_total", `# HELP molecule_swept_bytes_total Bytes of files deleted by this replica, by state.
# TYPE molecule_swept_bytes_total counter
molecule_swept_bytes_total{state="acked"} 30
molecule_swept_bytes_total{state="expired"} 40
`)
	compare(t, p, "molecule_sweep_errors_total", `# HELP molecule_sweep_errors_total Sweeps that failed.
# TYPE molecule_sweep_errors_total counter
molecule_sweep_errors_total 1
`)
	before := float64(time.Now().Unix())
	p.Swept(metrics.Sweep{})
	families, err := p.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "molecule_sweep_last_success_timestamp_seconds" && f.GetMetric()[0].GetGauge().GetValue() < before {
			t.Errorf("last success is %v", f.GetMetric()[0])
		}
	}
}
