package config

import (
	"fmt"
	"net/url"
	"strings"
)

// The standard names of OpenTelemetry, and where its collectors listen by default.
const (
	tracesPath         = "/v1/traces"
	defaultCollector   = "http://localhost:4318"
	tracesEndpointName = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	anyEndpointName    = "OTEL_EXPORTER_OTLP_ENDPOINT"
)

// traces returns the URL to send traces to, "" for none: nothing is sent unless somebody has
// said where, or at least how.
func (l *loader) traces(s Settings) string {
	exporter := s.OTELTracesExporter
	if exporter != "" {
		l.oneOf("OTEL_TRACES_EXPORTER", exporter, "otlp", "none")
	}
	// The one for traces is taken as it is; the other is for all signals, each with its path.
	endpoint := l.endpoint(tracesEndpointName, s.OTELTracesEndpoint)
	if base := l.endpoint(anyEndpointName, s.OTELEndpoint); endpoint == "" && base != "" {
		endpoint = strings.TrimSuffix(base, "/") + tracesPath
	}
	disabled := strings.ToLower(s.OTELDisabled) // in any case, as OpenTelemetry has it
	if disabled != "" {
		l.oneOf("OTEL_SDK_DISABLED", disabled, "true", "false")
	}
	switch {
	case disabled == "true", exporter == "none":
		return ""
	case endpoint == "" && exporter == "otlp":
		return defaultCollector + tracesPath
	}
	return endpoint
}

func (l *loader) endpoint(name, value string) string {
	u, err := url.Parse(value)
	if value != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		// Without the value, which may hold a password.
		l.errs = append(l.errs, fmt.Errorf("%s is no URL; write that of a collector that takes OTLP over HTTP, such as http://127.0.0.1:4318", name))
	}
	return value
}
