// Package spool takes an upload off the network before the storage sees it.
//
// A client may send slowly or stop halfway. Staging directly from the request would hold a transaction
// and a connection for that long. So a Batch first reads all parts of the request, counts and hashes
// them, and keeps them in memory and in a temporary file. Then it hands them to
// pendinguploads.Storage as NewFile values whose Size and SHA256 are right, whatever the Storage.
//
// The package enforces the limits of one file and of one upload. It does not parse multipart bodies,
// does not limit how many batches exist at the same time, and stages nothing; package handlers does.
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

// ErrTempFile reports that the temporary file of a batch cannot be written, for example because the
// disk is full. It is a failure of the platform, not of the client.
var ErrTempFile = errors.New("spool: cannot write temporary file")

// maxMemory is how much of a batch is kept in memory, in bytes. The rest goes to a temporary file.
const maxMemory = 1 << 20

// copyBytes is the size of the buffer through which a part is read.
const copyBytes = 64 << 10

var memoryBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyBytes); return &b }}

// A Batch holds the files of one upload until they are staged.
//
// It keeps at most one MiB in memory and the rest in one temporary file. The file is unlinked right
// after it is created, so the operating system deletes it when the process ends, however it ends. A
// Batch is for one goroutine. Close it when the files are staged.
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
	offset, size   int64 // offset in the memory or in the temporary file
	inMemory       bool
}

// NewBatch returns an empty batch that enforces MaxFileBytes and MaxBatchBytes of limits. It creates
// its temporary file in dir, or in the system's temporary folder if dir is "".
func NewBatch(limits pendinguploads.Limits, dir string) *Batch {
	return &Batch{limits: limits, dir: dir, memory: memoryBuffers.Get().(*bytes.Buffer)}
}

// Add reads r to its end as the next file. It sanitizes the name and cleans the type.
//
// It returns pendinguploads.ErrTooLarge or ErrBatchTooLarge as soon as r yields one byte too many,
// ErrTempFile if the temporary file cannot be written, and otherwise the wrapped error of r. After an
// error the batch must be closed.
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
		if err == io.EOF { // not errors.Is: a wrapped io.EOF reports that the connection was cut
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// write appends data to part p. A part is either in memory or in the file: one that outgrows the memory
// is moved.
func (b *Batch) write(p *part, data []byte) error {
	if p.inMemory && b.memory.Len()+len(data) <= maxMemory {
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

// move moves p, the last part in memory, to a new temporary file.
func (b *Batch) move(p *part) error {
	if err := b.openSpill(); err != nil {
		return err
	}
	moved := b.memory.Bytes()[p.offset:]
	b.memory.Truncate(int(p.offset))
	p.inMemory, p.offset = false, 0
	err := b.writeSpill(moved)
	if len(b.parts) == 0 {
		b.releaseMemory() // no other part is in it, not even an empty one
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
		memoryBuffers.Put(b.memory)
		b.memory = nil
	}
}

// Len returns the number of files in the batch.
func (b *Batch) Len() int { return len(b.parts) }

// Files returns the files in the order in which they were added, each Content at its start. They are
// valid until Close.
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
