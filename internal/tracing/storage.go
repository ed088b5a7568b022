package tracing

import (
	"context"
	"io"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// Storage returns s with spans around the operations that may take long: staging files and opening one.
func (t *Tracing) Storage(s pendinguploads.Storage) pendinguploads.Storage {
	if t == nil {
		return s
	}
	return &storage{Storage: s, tracer: t.tracer}
}

type storage struct {
	pendinguploads.Storage
	tracer trace.Tracer
}

// StageOnce implements pendinguploads.Storage.
func (s *storage) StageOnce(
	ctx context.Context, workspace uuid.UUID, key string, files []pendinguploads.NewFile,
) ([]pendinguploads.File, bool, error) {
	var bytes int64
	for _, f := range files {
		bytes += f.Size
	}
	ctx, span := s.start(ctx, "stage", workspace, attribute.Int("molecule.files", len(files)), attribute.Int64("molecule.bytes", bytes))
	staged, replayed, err := s.Storage.StageOnce(ctx, workspace, key, files)
	span.SetAttributes(attribute.Bool("molecule.replayed", replayed))
	end(span, err)
	return staged, replayed, err
}

// Stage implements pendinguploads.Storage.
func (s *storage) Stage(ctx context.Context, workspace uuid.UUID, files []pendinguploads.NewFile) ([]pendinguploads.File, error) {
	staged, _, err := s.StageOnce(ctx, workspace, "", files)
	return staged, err
}

// Open implements pendinguploads.Storage. The span does not include reading the content: that takes as
// long as the client does and belongs to the span of the request.
func (s *storage) Open(ctx context.Context, workspace, id uuid.UUID) (pendinguploads.File, io.ReadSeekCloser, error) {
	opening, span := s.start(ctx, "open", workspace, attribute.String("molecule.file_id", id.String()))
	f, content, err := s.Storage.Open(opening, workspace, id)
	end(span, err)
	return f, content, err
}

func (s *storage) start(ctx context.Context, name string, workspace uuid.UUID, attributes ...attribute.KeyValue) (context.Context, trace.Span) {
	attributes = append(attributes, attribute.String("molecule.workspace_id", workspace.String()))
	return s.tracer.Start(ctx, name, trace.WithAttributes(attributes...))
}

func end(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, "") // the log has the cause, which may name a file
	}
	span.End()
}
