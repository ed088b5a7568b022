package objectstore

import (
	"bytes"
	"errors"
	"io"
)

// errLength: writing goes no further, so that an object is never shorter or longer than its row says.
var errLength = errors.New("the content is not as long as its size")

// source is the content of an object that is being written, which a backend reads piece by piece.
type source struct {
	content io.Reader
	size    int64
	start   int64       // of content, if it is random
	random  io.ReaderAt // nil: content can be read once only
	buffer  []byte      // of content that can be read once only
}

func newSource(content io.Reader, size int64) (*source, error) {
	s := &source{content: content, size: size}
	if seekable, ok := content.(interface {
		io.ReaderAt
		io.Seeker
	}); ok {
		var err error
		if s.start, err = seekable.Seek(0, io.SeekCurrent); err != nil {
			return nil, err
		}
		s.random = seekable
	}
	return s, nil
}

// piece returns the next length bytes from offset on, which can be read again if a request is sent again.
// It is valid until the next call. Pieces must be asked for in order.
func (s *source) piece(offset, length int64) (io.ReadSeeker, error) {
	if s.random != nil {
		return io.NewSectionReader(s.random, s.start+offset, length), nil
	}
	if s.buffer == nil {
		s.buffer = make([]byte, length)
	}
	piece := s.buffer[:length]
	if _, err := io.ReadFull(s.content, piece); err != nil {
		return nil, shorter(err)
	}
	if offset+length == s.size {
		if err := atEnd(s.content); err != nil {
			return nil, err
		}
	}
	return bytes.NewReader(piece), nil
}

// atEnd reads content to its end, which must be here.
func atEnd(content io.Reader) error {
	n, err := io.ReadFull(content, make([]byte, 1))
	switch {
	case n != 0:
		return errLength
	case err != io.EOF:
		return err
	}
	return nil
}

func shorter(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return errLength
	}
	return err
}
