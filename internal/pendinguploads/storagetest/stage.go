package storagetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/pendinguploads"
)

func (s suite) everySize(t *testing.T, ctx context.Context) {
	for _, size := range []int{0, 1, mib - 1, mib, mib + 1, 2 * mib, 3*mib + 1, int(limits.MaxFileBytes)} {
		want, f := s.stageOne(t, ctx, uuid.New(), size)
		if got := s.get(t, ctx, f); show(got) != show(f) {
			t.Errorf("size %d: Get returns\n%s, Stage returned\n%s", size, show(got), show(f))
		}
		s.mustRead(t, ctx, f, want)
	}
}

func (s suite) oddReaders(t *testing.T, ctx context.Context) {
	for name, odd := range map[string]func(io.Reader) io.Reader{
		"one byte at a time": iotest.OneByteReader,
		"half of it":         iotest.HalfReader,
		"data with the end":  iotest.DataErrReader,
	} {
		want := newSample(mib + 100)
		file := want.file()
		file.Content = odd(file.Content)
		staged, err := s.Storage.Stage(ctx, uuid.New(), []pendinguploads.NewFile{file})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		s.mustRead(t, ctx, staged[0], want)
	}
}

func (s suite) tooLarge(t *testing.T, ctx context.Context) {
	workspace, capped := uuid.New(), int(limits.MaxFileBytes)
	rest := int(limits.MaxBatchBytes) - capped
	s.mustRefuse(t, ctx, workspace, pendinguploads.ErrTooLarge, newFiles(newSample(capped+1)))
	s.mustRefuse(t, ctx, workspace, pendinguploads.ErrBatchTooLarge, newFiles(newSamples(capped, rest, 1)...))
	s.mustRefuse(t, ctx, workspace, pendinguploads.ErrBatchTooLarge, newFiles(newSamples(capped, rest+1)...))
	s.stage(t, ctx, workspace, newSamples(capped, rest)...) // exactly both limits
}

func (s suite) invalid(t *testing.T, ctx context.Context) {
	workspace, good := uuid.New(), newSample(5)
	for _, name := range []string{"", ".", "..", "a b", "a/b", "a\x00b", "é", "a\nb", strings.Repeat("a", 101)} {
		bad := good.file()
		bad.Name = name
		s.mustRefuse(t, ctx, workspace, pendinguploads.ErrInvalidFile, []pendinguploads.NewFile{good.file(), bad})
	}
	for _, mimeType := range []string{"", "text", "text/", "text/plain; charset=utf-8", "Text/plain", "text/pl\nain", " text/plain"} {
		bad := good.file()
		bad.MIMEType = mimeType
		s.mustRefuse(t, ctx, workspace, pendinguploads.ErrInvalidFile, []pendinguploads.NewFile{good.file(), bad})
	}
	bad := good.file()
	bad.Size = -1
	s.mustRefuse(t, ctx, workspace, pendinguploads.ErrInvalidFile, []pendinguploads.NewFile{good.file(), bad})

	for _, name := range []string{"a", "-", "...", "_.txt", strings.Repeat("a", 100)} {
		good.name = name
		s.stage(t, ctx, workspace, good)
	}
}

func (s suite) lyingSize(t *testing.T, ctx context.Context) {
	workspace := uuid.New()
	for _, c := range []struct{ says, is int }{
		{1, 0}, {0, 1}, {10, 9}, {10, 11}, {mib, mib - 1}, {mib, mib + 1}, {mib + 1, mib}, {2 * mib, mib}, {2*mib + 1, 2*mib + 2},
	} {
		liar := newSample(c.is).file()
		liar.Size = int64(c.says)
		s.mustRefuse(t, ctx, workspace, pendinguploads.ErrInvalidFile, []pendinguploads.NewFile{newSample(3).file(), liar})
	}
}

var errReader = errors.New("storagetest: the reader fails")

// The failing file is the last of five, so that four are written before it. The last offset is where the
// file should end.
func (s suite) failingReader(t *testing.T, ctx context.Context) {
	workspace, size := uuid.New(), 2*mib+9
	for _, offset := range []int{0, 1, mib - 1, mib, mib + 1, 2 * mib, size} {
		files := newFiles(newSamples(0, 10, mib+1, 20, size)...)
		last := &files[len(files)-1]
		last.Content = io.MultiReader(io.LimitReader(last.Content, int64(offset)), iotest.ErrReader(errReader))
		s.mustRefuse(t, ctx, workspace, errReader, files)
	}
}

func (s suite) cancelledStage(t *testing.T, ctx context.Context) {
	workspace := uuid.New()
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	s.mustRefuse(t, cancelled, workspace, context.Canceled, newFiles(newSamples(1, 2)...))

	const size = 2*mib + 9
	for _, offset := range []int{0, 1, mib, mib + 1, size} {
		cancelled, cancel := context.WithCancel(ctx)
		files := newFiles(newSamples(10, mib+1, size)...)
		last := &files[len(files)-1]
		last.Content = io.MultiReader(io.LimitReader(last.Content, int64(offset)), call(cancel), last.Content)
		s.mustRefuse(t, cancelled, workspace, context.Canceled, files)
		cancel()
	}
}

// call is an empty reader that calls itself when it is read.
type call func()

func (f call) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

// mustRefuse checks that Stage fails with want and leaves nothing in the workspace.
func (s suite) mustRefuse(t *testing.T, ctx context.Context, workspace uuid.UUID, want error, files []pendinguploads.NewFile) {
	t.Helper()
	staged, err := s.Storage.Stage(ctx, workspace, files)
	if !errors.Is(err, want) || staged != nil {
		last := files[len(files)-1]
		t.Errorf("Stage of %d files, the last %q, %q, size %d: %d files, %v; want %v",
			len(files), last.Name, last.MIMEType, last.Size, len(staged), err, want)
	}
	s.mustBeEmpty(t, ctx, workspace)
}

func (s suite) noFiles(t *testing.T, ctx context.Context) {
	workspace := uuid.New()
	s.stage(t, ctx, workspace)
	s.mustBeEmpty(t, ctx, workspace)
}

func (s suite) order(t *testing.T, ctx context.Context) {
	workspace := uuid.New()
	samples := newSamples(mib+1, 0, 30, mib, 10, 2*mib, 20)
	for i := range samples {
		samples[i].name = fmt.Sprintf("%d.txt", 9-i) // neither sizes nor names are in order
	}
	staged := s.stage(t, ctx, workspace, samples...)
	staged = append(staged, s.stage(t, ctx, workspace, samples[1], samples[0])...)

	var want, listed, announced []uuid.UUID
	for _, f := range staged {
		want = append(want, f.ID)
	}
	for _, f := range s.list(t, ctx, workspace, pendinguploads.ListQuery{}) {
		listed = append(listed, f.ID)
	}
	rows, err := s.Inbox(ctx, workspace)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		var body struct {
			FileID uuid.UUID `json:"file_id"`
		}
		if err := json.Unmarshal(row.RequestBody, &body); err != nil {
			t.Fatal(err)
		}
		announced = append(announced, body.FileID)
	}
	if !reflect.DeepEqual(listed, want) {
		t.Errorf("listed as %v, staged as %v", listed, want)
	}
	if !reflect.DeepEqual(announced, want) {
		t.Errorf("announced as %v, staged as %v", announced, want)
	}
}

// Literal values, not the program's constants: pollers in the field compare with these.
func (s suite) announcement(t *testing.T, ctx context.Context) {
	workspace := uuid.New()
	staged := s.stage(t, ctx, workspace, sample{name: "notes_1.txt", mimeType: "text/plain", data: []byte("hello")})
	rows, err := s.Inbox(ctx, workspace)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d inbox rows, %v", len(rows), err)
	}
	row, id := rows[0], staged[0].ID.String()
	got, err := json.Marshal(row)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"id": row.ID.String(), "workspace_id": workspace.String(),
		"activity_type": "a2a_receive", "method": "chat_upload_receive",
		"source_id": nil, "target_id": workspace.String(), "status": "ok",
		"summary": "chat_upload_receive: notes_1.txt",
		"request_body": map[string]any{
			"file_id": id, "name": "notes_1.txt", "mimeType": "text/plain", "size": 5.0,
			"uri":    "platform-pending:" + workspace.String() + "/" + id,
			"sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
		},
		"response_body": nil, "duration_ms": nil, "error_detail": nil,
	}
	var have map[string]any
	if err := json.Unmarshal(got, &have); err != nil {
		t.Fatal(err)
	}
	delete(have, "seq")
	delete(have, "created_at")
	if !reflect.DeepEqual(have, want) {
		t.Errorf("the inbox row is\n%v, want\n%v", have, want)
	}
}
