package config

import (
	"fmt"
	"net/url"
	"strings"
)

// OpenTelemetry's standard names, and the default address of its collectors.
const (
	tracesPath         = "/v1/traces"
	defaultCollector   = "http://localhost:4318"
	tracesEndpointName = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	anyEndpointName    = "OTEL_EXPORTER_OTLP_ENDPOINT"
)

// traces returns the URL to which traces are exported, or "" for none. Unlike OpenTelemetry's own default, nothing is
// exported unless an endpoint or an exporter is set: most machines have no collector, and every export would fail.
func (l *loader) traces(s Settings) string {
	exporter := s.OTELTracesExporter
	if exporter != "" {
		l.oneOf("OTEL_TRACES_EXPORTER", exporter, "otlp", "none")
	}
	// The endpoint for traces is used as it is; to the one for all signals each signal's path is appended.
	endpoint := l.endpoint(tracesEndpointName, s.OTELTracesEndpoint)
	if base := l.endpoint(anyEndpointName, s.OTELEndpoint); endpoint == "" && base != "" {
		endpoint = strings.TrimSuffix(base, "/") + tracesPath
	}
	disabled := strings.ToLower(s.OTELDisabled) // OpenTelemetry defines the value as case-insensitive
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
		// The value is left out of the error: it may hold a password.
		l.errs = append(l.errs, fmt.Errorf("%s is not an HTTP URL; write the URL of a collector for OTLP over HTTP, such as http://127.0.0.1:4318", name))
	}
	return value
}
