package spool

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"github.com/molecule-ai/platform/internal/pendinguploads"
	"github.com/molecule-ai/platform/internal/uploadname"
)

// ErrTempFile: the temporary file of a batch cannot be written, for want of space for example.
var ErrTempFile = errors.New("spool: cannot write temporary file")

// spoolMemory is how much of a batch is held in memory, in bytes; what is more goes to a
// temporary file.
const spoolMemory = 1 << 20

// copyBytes is the size of the buffer through which a part is read.
const copyBytes = 64 << 10

var spoolBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyBytes); return &b }}

// A Batch takes the files of one upload off a slow wire before anything is staged, so
// that no transaction waits for a client. It is the one place where lengths and digests
// are made: whatever the Storage, its files come from here.
//
// The first MiB of a batch is kept in memory, the rest in one temporary file that has no
// name any more, so that it vanishes with the process however that ends. A Batch is for
// one goroutine. Close it when the files are staged.
type Batch struct {
	limits  pendinguploads.Limits
	dir     string
	memory  *bytes.Buffer
	spill   *os.File
	spilled int64
	total   int64
	parts   []part
}

type part struct {
	name, mimeType string
	sum            [32]byte
	offset, size   int64 // offset counts through memory, then the temporary file
	inMemory       bool
}

// NewBatch returns an empty batch for files within limits, whose temporary file will be
// in dir, or in the system's folder for such files if dir is "".
func NewBatch(limits pendinguploads.Limits, dir string) *Batch {
	return &Batch{limits: limits, dir: dir, memory: spoolBuffers.Get().(*bytes.Buffer)}
}

// Add reads r to its end as the next file. The name is sanitized, the type cleaned.
// ErrTooLarge or ErrBatchTooLarge as soon as r yields one byte more than allowed. An error
// of r comes back wrapped; ErrTempFile says that it was not r that failed. After an error the
// batch is only good for Close.
func (b *Batch) Add(name, contentType string, r io.Reader) error {
	p := part{name: uploadname.SanitizeFilename(name), inMemory: b.spill == nil, offset: b.spilled}
	p.mimeType = uploadname.CleanMIMEType(contentType, p.name)
	if p.inMemory {
		p.offset = int64(b.memory.Len())
	}
	digest := sha256.New()
	if err := b.copy(&p, digest, r); err != nil {
		return fmt.Errorf("spool: spool %s: %w", p.name, err)
	}
	digest.Sum(p.sum[:0])
	b.parts = append(b.parts, p)
	return nil
}

func (b *Batch) copy(p *part, digest hash.Hash, r io.Reader) error {
	buffer := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buffer)
	for {
		n, err := r.Read(*buffer)
		data := (*buffer)[:n]
		p.size += int64(n)
		b.total += int64(n)
		switch {
		case p.size > b.limits.MaxFileBytes:
			return pendinguploads.ErrTooLarge
		case b.total > b.limits.MaxBatchBytes:
			return pendinguploads.ErrBatchTooLarge
		}
		digest.Write(data)
		if werr := b.write(p, data); werr != nil {
			return fmt.Errorf("%w: %w", ErrTempFile, werr)
		}
		if err == io.EOF { // itself: one that is wrapped says that r was cut
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// write appends data to part p. A part is in memory or in the file, never in both: one
// that outgrows the memory is moved.
func (b *Batch) write(p *part, data []byte) error {
	if p.inMemory && b.memory.Len()+len(data) <= spoolMemory {
		b.memory.Write(data)
		return nil
	}
	if p.inMemory {
		if err := b.move(p); err != nil {
			return err
		}
	}
	return b.writeSpill(data)
}

// move takes what there is of p, the last part in memory, to a new temporary file.
func (b *Batch) move(p *part) error {
	if err := b.openSpill(); err != nil {
		return err
	}
	moved := b.memory.Bytes()[p.offset:]
	b.memory.Truncate(int(p.offset))
	p.inMemory, p.offset = false, 0
	err := b.writeSpill(moved)
	if len(b.parts) == 0 {
		b.releaseMemory() // nobody else is in it, not even an empty part
	}
	return err
}

func (b *Batch) writeSpill(data []byte) error {
	n, err := b.spill.Write(data)
	b.spilled += int64(n)
	return err
}

func (b *Batch) openSpill() error {
	f, err := os.CreateTemp(b.dir, "upload-*")
	if err != nil {
		return err
	}
	b.spill = f
	return os.Remove(f.Name())
}

func (b *Batch) releaseMemory() {
	if b.memory != nil {
		b.memory.Reset()
		spoolBuffers.Put(b.memory)
		b.memory = nil
	}
}

// Len returns how many files the batch has.
func (b *Batch) Len() int { return len(b.parts) }

// Files returns the files in the order they were added, each Content at its start. They
// are good until Close.
func (b *Batch) Files() []pendinguploads.NewFile {
	files := make([]pendinguploads.NewFile, len(b.parts))
	for i, p := range b.parts {
		files[i] = pendinguploads.NewFile{Name: p.name, MIMEType: p.mimeType, Size: p.size, SHA256: p.sum}
		if p.inMemory {
			files[i].Content = bytes.NewReader(b.memory.Bytes()[p.offset:][:p.size])
		} else {
			files[i].Content = io.NewSectionReader(b.spill, p.offset, p.size)
		}
	}
	return files
}

// Close frees the memory and the temporary file.
func (b *Batch) Close() error {
	b.releaseMemory()
	b.parts = nil
	if b.spill == nil {
		return nil
	}
	return b.spill.Close()
}
