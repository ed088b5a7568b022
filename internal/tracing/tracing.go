// Package tracing sends a trace of each request to an OpenTelemetry collector, by OTLP over HTTP.
//
// It is optional: a nil *Tracing stands for a platform without traces, for which nothing is created or
// sent. A trace that the client has begun (traceparent, W3C) is continued. Spans contain the ids of workspaces and files, never names, contents
// or tokens. Spans wait in a bounded queue; if the collector is down they are dropped, and no request
// waits for it.
//
// The platform's configuration has the URL of the collector. Headers, certificates, sampling and the
// queue are set by the standard OTEL_* variables, which the OpenTelemetry library reads.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"
)

// scope is the instrumentation scope of the spans.
const scope = "github.com/molecule-ai/platform"

// Tracing creates spans. A nil *Tracing creates none.
type Tracing struct {
	provider    *sdktrace.TracerProvider
	tracer      trace.Tracer
	propagation propagation.TraceContext
}

// New returns a Tracing that sends spans to the collector at endpoint, a complete URL. It does not
// connect yet, so a collector that is down is not an error. Close it, or the last spans are lost.
func New(ctx context.Context, endpoint, version string, log *slog.Logger) (*Tracing, error) {
	// The library would write its errors to standard error as plain text, between lines of JSON.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		log.Warn("spans dropped; the OpenTelemetry collector did not accept them", "error", err)
	}))
	otel.SetLogger(logr.FromSlogHandler(log.Handler()))
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(endpoint))
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	// OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence, so WithFromEnv comes last.
	about, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(semconv.ServiceName("molecule-platform"), semconv.ServiceVersion(version)), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("traces: OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	return &Tracing{provider: provider, tracer: provider.Tracer(scope, trace.WithInstrumentationVersion(version))}, nil
}

// Close sends the spans that are still queued, until ctx ends.
func (t *Tracing) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// ID returns the trace id of ctx, "" if it belongs to no trace.
func ID(ctx context.Context) string {
	if id := trace.SpanContextFromContext(ctx).TraceID(); id.IsValid() {
		return id.String()
	}
	return ""
}

// Request begins the span of a request. route is the pattern of its route, "" if none matches. The
// caller calls end with the status of the response.
func (t *Tracing) Request(r *http.Request, route, clientIP string) (ctx context.Context, end func(status int)) {
	method, name := r.Method, r.Method+" "+route
	if route == "" {
		// The client chose both freely, so neither method nor path may become the name of a span.
		method, name = "_OTHER", "HTTP"
	}
	attributes := []attribute.KeyValue{semconv.HTTPRequestMethodKey.String(method), semconv.ClientAddress(clientIP)}
	if route != "" {
		attributes = append(attributes, semconv.HTTPRoute(route), semconv.URLPath(r.URL.Path))
	}
	ctx = t.propagation.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attributes...))
	return ctx, func(status int) {
		span.SetAttributes(semconv.HTTPResponseStatusCode(status))
		if status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, "")
		}
		span.End()
	}
}
