package metrics_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
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

// labels returns those that the answer to a query has.
func (s scraped) labels(expr parser.Expr) map[string]bool {
	all := map[string]bool{}
	switch e := expr.(type) {
	case *parser.VectorSelector:
		for label := range s[e.Name] {
			all[label] = true
		}
		for _, label := range targetLabels {
			all[label] = true
		}
	case *parser.AggregateExpr:
		for _, label := range e.Grouping {
			all[label] = true
		}
	default:
		for child := range parser.ChildrenIter(expr) {
			if child, ok := child.(parser.Expr); ok {
				maps.Copy(all, s.labels(child))
			}
		}
	}
	return all
}

// check returns what is wrong with a query, and the labels of the answer.
func (s scraped) check(query string) (problems []string, known map[string]bool) {
	expr, err := parser.ParseExpr(query)
	if err != nil {
		return []string{err.Error()}, nil
	}
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		if s[selector.Name] == nil {
			bad("there is no metric %s", selector.Name)
		}
		for _, m := range selector.LabelMatchers {
			if m.Name == model.MetricNameLabel || slices.Contains(targetLabels, m.Name) && selector.Name != "up" {
				continue
			}
			if s[selector.Name][m.Name] == nil {
				bad("%s has no label %s", selector.Name, m.Name)
				continue
			}
			for value := range strings.SplitSeq(m.Value, "|") {
				if !s.exists(selector.Name, m.Name, value) {
					bad("%s never has %s=%q", selector.Name, m.Name, value)
				}
			}
		}
		return nil
	})
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if a, ok := node.(*parser.AggregateExpr); ok {
			inside := s.labels(a.Expr)
			for _, label := range a.Grouping {
				if !inside[label] {
					bad("nothing in it has the label %s", label)
				}
			}
		}
		return nil
	})
	return problems, s.labels(expr)
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
	queries := 0
	check := func(where, query, text string, label *regexp.Regexp) {
		t.Helper()
		queries++
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
	if queries < 50 {
		t.Errorf("only %d queries were checked", queries)
	}
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
