package metrics_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/molecule-ai/platform/internal/server"
	"github.com/molecule-ai/platform/internal/server/servertest"
)

const deploy = "../../deploy/"

// targetLabels are those that Prometheus adds to what it scrapes.
var targetLabels = []string{"instance", "job"}

// An alert of alerts.yml.
type alert struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

func alerts(t *testing.T) []alert {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string
			Rules []alert
		}
	}
	raw := read(t, deploy+"prometheus/alerts.yml")
	if err := yaml.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	var all []alert
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 8 {
		t.Fatalf("only %d alerts", len(all))
	}
	return all
}

// A panel of platform.json.
type panel struct {
	ID      int
	Title   string
	Type    string
	Targets []struct{ Expr, LegendFormat string }
}

func panels(t *testing.T) []panel {
	t.Helper()
	var dashboard struct {
		Panels     []panel
		Templating struct{ List []struct{ Query string } }
	}
	if err := json.Unmarshal(read(t, deploy+"grafana/platform.json"), &dashboard); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for i, p := range dashboard.Panels {
		if ids[p.ID] || p.Title == "" || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %d (%s) has no id of its own, no title or nothing to show", i, p.Title)
		}
		ids[p.ID] = true
	}
	if len(dashboard.Panels) < 16 {
		t.Fatalf("only %d panels", len(dashboard.Panels))
	}
	return dashboard.Panels
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// scraped is what there is to query: the labels of each series by its name, and their values.
type scraped map[string]map[string]map[string]bool

func series(all families) scraped {
	s := scraped{"up": {"job": {"molecule-platform": true}}} // Prometheus's own
	for name, f := range all {
		for _, m := range f.GetMetric() {
			suffixes := []string{""}
			if m.Histogram != nil {
				suffixes = []string{"_bucket", "_sum", "_count"}
			}
			for _, suffix := range suffixes {
				of := s[name+suffix]
				if of == nil {
					of = map[string]map[string]bool{}
					s[name+suffix] = of
				}
				for _, l := range m.GetLabel() {
					if of[l.GetName()] == nil {
						of[l.GetName()] = map[string]bool{}
					}
					of[l.GetName()][l.GetValue()] = true
				}
				if suffix == "_bucket" {
					of["le"] = map[string]bool{"+Inf": true}
				}
			}
		}
	}
	return s
}

var statusClass = regexp.MustCompile(`^[1-5]xx$`)

// exists reports whether the label can have that value.
func (s scraped) exists(metric, label, value string) bool {
	switch label {
	case "code": // not all happen in a test, but all are in the contract
		return regexp.MustCompile(`code: \{[^}]*enum: \[([a-z_]+, )*` + value + `[],]`).Match(server.OpenAPI)
	case "status":
		return statusClass.MatchString(value)
	}
	return s[metric][label][value]
}

// tokens of PromQL, as far as the queries here use it: a grouping, a matching, a range, a name with its
// matchers, a number, a parenthesis. Syntax is promtool's business.
var (
	tokens   = regexp.MustCompile(`\bby\s*\(([^)]*)\)|\b(?:on|ignoring|group_left|group_right)\s*\([^)]*\)|\[[^\]]*\]|([a-zA-Z_:][\w:]*)(?:\s*\{[^}]*\})?|\d[\w.]*|[()]`)
	matchers = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"`)

	operators    = []string{"and", "or", "unless", "bool", "offset"}
	aggregations = []string{"avg", "bottomk", "count", "group", "max", "min", "stddev", "sum", "topk"}
)

// A frame is what is between two parentheses.
type frame struct {
	aggregate bool
	by        []string
	labels    map[string]bool // of what is inside
}

// check returns what is wrong with a query, and the labels of the answer.
func (s scraped) check(query string) (problems []string, labels map[string]bool) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	open := []frame{{labels: map[string]bool{}}}
	var next frame // what the next parenthesis opens
	for _, at := range tokens.FindAllStringSubmatchIndex(query, -1) {
		token, rest := query[at[0]:at[1]], strings.TrimSpace(query[at[1]:])
		inside := &open[len(open)-1]
		switch {
		case token == "(":
			next.labels = map[string]bool{}
			open = append(open, next)
			next = frame{}
		case token == ")" && len(open) == 1:
			return append(problems, "a parenthesis too many"), nil
		case token == ")":
			open = open[:len(open)-1]
			maps.Copy(open[len(open)-1].labels, inside.answer(bad))
		case at[2] >= 0: // by (a, b)
			if !next.aggregate {
				bad("write 'sum by (label) (...)', not the labels at the end")
			}
			next.by = strings.FieldsFunc(query[at[2]:at[3]], func(r rune) bool { return r == ',' || r == ' ' })
		case at[4] < 0: // a matching, a range or a number
		case token == "without":
			bad("write 'by (label)' instead of 'without'")
		case slices.Contains(aggregations, token):
			next = frame{aggregate: true}
		case slices.Contains(operators, token) || strings.HasPrefix(rest, "("): // or a function
		default:
			s.selector(query[at[4]:at[5]], token, bad)
			for label := range s[query[at[4]:at[5]]] {
				inside.labels[label] = true
			}
			for _, label := range targetLabels {
				inside.labels[label] = true
			}
		}
	}
	if len(open) != 1 {
		bad("a parenthesis is not closed")
	}
	return problems, open[0].labels
}

// answer returns the labels that are left outside the parentheses.
func (f frame) answer(bad func(string, ...any)) map[string]bool {
	if !f.aggregate {
		return f.labels
	}
	left := map[string]bool{}
	for _, label := range f.by {
		if left[label] = true; !f.labels[label] {
			bad("nothing in it has the label %s", label)
		}
	}
	return left
}

// selector checks a metric and the matchers behind it.
func (s scraped) selector(metric, text string, bad func(string, ...any)) {
	if s[metric] == nil {
		bad("there is no metric %s", metric)
		return
	}
	for _, m := range matchers.FindAllStringSubmatch(strings.TrimPrefix(text, metric), -1) {
		label, values := m[1], m[2]
		switch {
		case slices.Contains(targetLabels, label) && metric != "up":
		case s[metric][label] == nil:
			bad("%s has no label %s", metric, label)
		default:
			for value := range strings.SplitSeq(values, "|") {
				if !s.exists(metric, label, value) {
					bad("%s never has %s=%q", metric, label, value)
				}
			}
		}
	}
}

// promtool runs Prometheus's own checks.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Fatalf("there is no promtool to check deploy/ with (%v); run `make setup-test`", err)
	}
	if output, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, output)
	}
}

// Planted: a parenthesis left out in alerts.yml; an alert that fires on an ordinary day; a rule file that
// is not there.
func TestDeploy_PromtoolIsContent(t *testing.T) {
	t.Parallel()
	promtool(t, "check", "rules", deploy+"prometheus/alerts.yml")
	promtool(t, "check", "config", deploy+"prometheus/prometheus.yml")
	promtool(t, "test", "rules", deploy+"prometheus/alerts_test.yml")
}

// syntax has promtool check queries, as the rules of a file.
func syntax(t *testing.T, queries []string) {
	t.Helper()
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	rules := make([]rule, len(queries))
	for i, query := range queries {
		rules[i] = rule{fmt.Sprintf("query_%d", i), query}
	}
	raw, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "queries", "rules": rules}}}) // JSON is YAML
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "queries.yml")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", path)
}

var (
	legendLabel     = regexp.MustCompile(`\{\{(\w+)\}\}`)
	annotationLabel = regexp.MustCompile(`\$labels\.(\w+)`)
	grafana         = strings.NewReplacer("$__rate_interval", "5m", `=~"$instance"`, `=~".*"`)
)

// Planted: a metric renamed in alerts.yml and in platform.json; a label, a code and a state that
// there are not; a legend with a label that was summed away; a query that is no PromQL.
func TestDeploy_EveryQueryIsOfMetricsThatAPlatformHas(t *testing.T) {
	t.Parallel()
	p := servertest.Start(t, smallFiles)
	traffic(t, p)
	there := series(scrape(t, p))
	var queries []string
	check := func(where, query, text string, label *regexp.Regexp) {
		t.Helper()
		queries = append(queries, query)
		problems, known := there.check(query)
		for _, problem := range problems {
			t.Errorf("%s: %s\n%s", where, problem, query)
		}
		for _, found := range label.FindAllStringSubmatch(text, -1) {
			if !known[found[1]] {
				t.Errorf("%s: %q names the label %s, which the answer to %s has not", where, text, found[1], query)
			}
		}
	}
	for _, a := range alerts(t) {
		check(a.Alert, a.Expr, a.Annotations["summary"], annotationLabel)
	}
	for _, panel := range panels(t) {
		for _, target := range panel.Targets {
			check(panel.Title, grafana.Replace(target.Expr), target.LegendFormat, legendLabel)
		}
	}
	if len(queries) < 50 {
		t.Errorf("only %d queries were checked", len(queries))
	}
	syntax(t, queries)
}

// Planted: an alert without a paragraph, a link to another's, a paragraph that no alert leads to.
func TestDeploy_EveryAlertSaysWhatToDo(t *testing.T) {
	t.Parallel()
	docs := string(read(t, "../../docs/runbook.md"))
	paragraphs := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^### (Molecule\w+)\n\n.{80,}`).FindAllStringSubmatch(docs, -1) {
		paragraphs[heading[1]] = true
	}
	for _, a := range alerts(t) {
		if !paragraphs[a.Alert] {
			t.Errorf("docs/runbook.md has no entry ### %s", a.Alert)
		}
		delete(paragraphs, a.Alert)
		if !strings.HasSuffix(a.Annotations["runbook_url"], "/docs/runbook.md#"+strings.ToLower(a.Alert)) {
			t.Errorf("%s leads to %s", a.Alert, a.Annotations["runbook_url"])
		}
		if a.Annotations["summary"] == "" || !slices.Contains([]string{"critical", "warning"}, a.Labels["severity"]) {
			t.Errorf("%s has no summary, or its severity is %q", a.Alert, a.Labels["severity"])
		}
	}
	for name := range paragraphs {
		t.Errorf("docs/runbook.md has an entry on %s, and there is no such alert", name)
	}
}

// What Prometheus is told to load is there, under the job that the alerts look for.
func TestDeploy_PrometheusLoadsTheAlerts(t *testing.T) {
	t.Parallel()
	var file struct {
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName string `yaml:"job_name"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal(read(t, deploy+"prometheus/prometheus.yml"), &file); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(file.RuleFiles, []string{"alerts.yml"}) || len(file.ScrapeConfigs) != 1 || file.ScrapeConfigs[0].JobName != "molecule-platform" {
		t.Errorf("%+v", file)
	}
}
