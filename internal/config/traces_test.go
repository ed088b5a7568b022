package config_test

import (
	"strings"
	"testing"
)

// Planted faults: traces exported by default; no path appended to the endpoint for all signals, or one appended to the
// endpoint for traces; OTEL_SDK_DISABLED ignored.
func TestLoad_TracesGoWhereOpenTelemetrySays(t *testing.T) {
	unset(t)
	const here, there = "--otel-exporter-otlp-endpoint=", "--otel-exporter-otlp-traces-endpoint="
	for args, want := range map[string]string{
		"":                             "",
		"--otel-sdk-disabled=false":    "",
		"--otel-traces-exporter=none":  "",
		"--otel-traces-exporter=otlp":  "http://localhost:4318/v1/traces",
		here + "http://c:4318":         "http://c:4318/v1/traces",
		here + "https://c/otlp/":       "https://c/otlp/v1/traces",
		there + "http://c:4318/traces": "http://c:4318/traces",
		here + "http://all " + there + "http://traces/x":        "http://traces/x",
		here + "http://c --otel-traces-exporter=none":           "",
		here + "http://c --otel-traces-exporter=otlp":           "http://c/v1/traces",
		here + "http://c --otel-sdk-disabled=true":              "",
		"--otel-traces-exporter=otlp --otel-sdk-disabled=TRUE":  "",
		"--otel-traces-exporter=otlp --otel-sdk-disabled=False": "http://localhost:4318/v1/traces",
	} {
		c, err := parse(t, strings.Fields(args)...).Load()
		if err != nil || c.TracesEndpoint != want {
			t.Errorf("%s: %q, %v, want %q", args, c.TracesEndpoint, err, want)
		}
	}
	for _, args := range []string{
		here + "collector:4318", here + "grpc://c:4317", there + "http://", "--otel-traces-exporter=console", "--otel-sdk-disabled=1",
	} {
		_, err := parse(t, args).Load()
		name, _, _ := strings.Cut(strings.TrimPrefix(args, "--"), "=")
		if name = strings.ToUpper(strings.ReplaceAll(name, "-", "_")); err == nil || !strings.HasPrefix(err.Error(), name+" ") {
			t.Errorf("%s: %v, want a line on %s", args, err, name)
		}
	}
}
