// Package jsoncheck refuses JSON that Go's parser accepts and an ordinary reader in another language cannot use.
//
// A message that one reader cannot parse stops a whole inbox: the reader never gets past the page that holds it.
// So everything that is stored for others to read is checked at the door. Check promises that a document that passes
// can be read by Python's json, JavaScript's JSON.parse and PostgreSQL's json type without an error and without a
// value that JSON does not have, such as Infinity. It does not judge what a document means.
package jsoncheck

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// MaxDepth is the deepest nesting of arrays and objects. Python's parser fails at about 1,000 levels.
	MaxDepth = 500

	// MaxNumberChars is the maximum length of a number as it is written. Python refuses integers of more than 4,300 digits;
	// no IEEE double needs more than 400 characters unless it is padded.
	MaxNumberChars = 400
)

// ErrSyntax means that a document is not JSON at all.
var ErrSyntax = errors.New("jsoncheck: not valid JSON")

// An Error says what of a JSON document other readers cannot use, and where it stands.
type Error struct {
	Path   string // such as params.message.parts[2].n; "" is the document itself
	Reason string // a clause such as "is nested more than 500 levels deep"
}

// Error implements error.
func (e *Error) Error() string {
	if e.Path == "" {
		return "the document " + e.Reason
	}
	return e.Path + " " + e.Reason
}

// Check returns nil if every ordinary reader can read raw, ErrSyntax if it is not JSON, and an *Error otherwise.
func Check(raw []byte) error {
	c := checker{raw: raw}
	if err := c.depth(); err != nil { // before anything that recurses
		return err
	}
	if !json.Valid(raw) {
		return ErrSyntax
	}
	return c.values()
}

// A checker walks through a document without building its values.
type checker struct {
	raw   []byte
	i     int
	stack []frame
}

// A frame is an array or object that is open.
type frame struct {
	object bool
	index  int    // of the array's current element
	key    string // of the object's current member
	isKey  bool   // the object's next string is a key
}

// depth needs no syntax: a document that nests too deeply is refused whether or not it is JSON.
func (c *checker) depth() error {
	level, quoted := 0, false
	for i := 0; i < len(c.raw); i++ {
		switch b := c.raw[i]; {
		case quoted && b == '\\':
			i++
		case b == '"':
			quoted = !quoted
		case quoted:
		case b == '{' || b == '[':
			if level++; level > MaxDepth {
				return &Error{Reason: fmt.Sprintf("is nested more than %d levels deep", MaxDepth)}
			}
		case b == '}' || b == ']':
			level--
		}
	}
	return nil
}

// values checks the strings and numbers of a valid document.
func (c *checker) values() error {
	for c.i < len(c.raw) {
		b := c.raw[c.i]
		c.i++
		switch {
		case b == '{' || b == '[':
			c.stack = append(c.stack, frame{object: b == '{', isKey: b == '{'})
		case b == '}' || b == ']':
			c.stack = c.stack[:len(c.stack)-1]
		case b == ',':
			top := &c.stack[len(c.stack)-1]
			top.index++
			top.isKey = top.object
		case b == '"':
			if err := c.text(); err != nil {
				return err
			}
		case b == '-' || '0' <= b && b <= '9':
			if err := c.number(); err != nil {
				return err
			}
		}
	}
	return nil
}

// text checks a string whose opening quote has been read.
func (c *checker) text() error {
	begin := c.i
	surrogate := false // the last escape was the first half of a pair
	for {
		r, size := utf8.DecodeRune(c.raw[c.i:])
		if r == utf8.RuneError && size == 1 {
			return c.fault("has bytes that are not UTF-8")
		}
		c.i += size
		if r != '\\' {
			if surrogate {
				return c.fault(`has half of a surrogate pair (\ud800 to \udfff)`)
			}
			if r == '"' {
				break
			}
			continue
		}
		escape := c.raw[c.i]
		c.i++
		unit := uint64(0)
		if escape == 'u' {
			unit, _ = strconv.ParseUint(string(c.raw[c.i:c.i+4]), 16, 32) // valid JSON has four hexadecimal digits here
			c.i += 4
		}
		low := 0xDC00 <= unit && unit <= 0xDFFF
		if surrogate != low {
			return c.fault(`has half of a surrogate pair (\ud800 to \udfff)`)
		}
		surrogate = 0xD800 <= unit && unit <= 0xDBFF
	}
	if n := len(c.stack); n > 0 && c.stack[n-1].isKey {
		c.stack[n-1].isKey = false
		c.stack[n-1].key = string(c.raw[begin : c.i-1])
	}
	return nil
}

// number checks a number whose first byte has been read.
func (c *checker) number() error {
	begin := c.i - 1
	for c.i < len(c.raw) && strings.IndexByte("0123456789+-.eE", c.raw[c.i]) >= 0 {
		c.i++
	}
	written := c.raw[begin:c.i]
	if len(written) > MaxNumberChars {
		return c.fault(fmt.Sprintf("is a number of more than %d characters", MaxNumberChars))
	}
	if f, err := strconv.ParseFloat(string(written), 64); err != nil || math.IsInf(f, 0) {
		return c.fault("is a number beyond the range of an IEEE double")
	}
	return nil
}

// maxPathChars bounds what of a place is named.
const maxPathChars = 200

// fault returns the error for the value that is being checked.
func (c *checker) fault(reason string) error {
	var path strings.Builder
	for _, f := range c.stack {
		switch {
		case !f.object:
			fmt.Fprintf(&path, "[%d]", f.index)
		case f.isKey:
			path.WriteString(" (a key)")
		default:
			if path.Len() > 0 {
				path.WriteByte('.')
			}
			path.WriteString(f.key)
		}
		if path.Len() > maxPathChars {
			break
		}
	}
	return &Error{Path: printable(path.String()), Reason: reason}
}

// printable bounds a path and replaces what is not plain text: its keys come from the client.
func printable(path string) string {
	if len(path) > maxPathChars {
		path = path[:maxPathChars] + "..."
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r < ' ' || r == 0x7F {
			return '?'
		}
		return r
	}, path))
}
