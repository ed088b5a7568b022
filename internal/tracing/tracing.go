// Package tracing sends what requests did, and how long it took, to an OpenTelemetry collector,
// by OTLP over HTTP.
//
// It is only there if it is configured: a nil *Tracing costs nothing, and nothing is made, sent
// or kept for one. A trace that a caller has begun (traceparent, W3C) is gone on with. Spans
// have ids of workspaces and files, never names, contents or tokens. A collector that is away costs
// spans, never requests: they wait in a queue of bounded length.
//
// Where to send is the platform's configuration. How (headers, certificates, sampling, the queue)
// is set by the other variables that OpenTelemetry defines; its library reads them.
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

// scope names who makes the spans.
const scope = "github.com/molecule-ai/platform"

// Tracing makes spans. nil makes none.
type Tracing struct {
	provider    *sdktrace.TracerProvider
	tracer      trace.Tracer
	propagation propagation.TraceContext
}

// New returns what sends spans to the collector at endpoint, a whole URL. It does not look
// whether somebody is there. Close it, or the last spans are lost.
func New(ctx context.Context, endpoint, version string, log *slog.Logger) (*Tracing, error) {
	// The library's own complaints would go to standard error as they are, between lines of JSON.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces were not sent", "error", err) }))
	otel.SetLogger(logr.FromSlogHandler(log.Handler()))
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(endpoint))
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	// What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say counts more.
	about, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(semconv.ServiceName("molecule-platform"), semconv.ServiceVersion(version)), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("traces: OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	return &Tracing{provider: provider, tracer: provider.Tracer(scope, trace.WithInstrumentationVersion(version))}, nil
}

// Close sends what is left, for as long as ctx allows.
func (t *Tracing) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// ID returns the id of the trace that ctx belongs to, "" if there is none.
func ID(ctx context.Context) string {
	if id := trace.SpanContextFromContext(ctx).TraceID(); id.IsValid() {
		return id.String()
	}
	return ""
}

// Request begins the span of a request that goes to a route, "" if there is none. End it with
// the status of the answer.
func (t *Tracing) Request(r *http.Request, route, clientIP string) (ctx context.Context, end func(status int)) {
	method, name := r.Method, r.Method+" "+route
	if route == "" {
		// Made up by the client: neither method nor path must make a span's name.
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
