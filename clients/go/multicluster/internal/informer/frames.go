package informer

import (
	"bytes"
	"encoding/binary"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
)

const maxFrame = 16 << 20 // as in client-go

// split finds the first frame in what was read since the last one.
type split interface {
	// begins returns whether the first byte that was read after a frame begins the next one.
	begins(next byte) bool
	// split returns the frame and what follows it. Without a complete frame it returns what is to be read on.
	split(read []byte) (frame, rest []byte, err error)
}

// framesOf returns nil for a type that is not known.
func framesOf(mediaType string) split {
	switch mediaType {
	case runtime.ContentTypeJSON:
		return &jsonFrames{}
	case runtime.ContentTypeProtobuf:
		return delimitedFrames{}
	default:
		return nil
	}
}

// delimitedFrames are those of protobuf, with their length in four bytes before them.
type delimitedFrames struct{}

func (delimitedFrames) begins(byte) bool { return true }

func (delimitedFrames) split(read []byte) (frame, rest []byte, err error) {
	const prefix = 4
	if len(read) < prefix {
		return nil, read, nil
	}
	length := binary.BigEndian.Uint32(read)
	if length > maxFrame-prefix {
		return nil, nil, streaming.ErrObjectTooLarge
	}
	end := prefix + int(length)
	if len(read) < end {
		return nil, read, nil
	}
	return read[prefix:end], read[end:], nil
}

const whiteSpace = " \t\r\n"

// jsonFrames are JSON objects, possibly with white space between them.
type jsonFrames struct {
	scanned         int // bytes of the frame
	depth           int
	quoted, escaped bool
}

func (*jsonFrames) begins(next byte) bool { return strings.IndexByte(whiteSpace, next) < 0 }

func (f *jsonFrames) split(read []byte) (frame, rest []byte, err error) {
	if f.scanned == 0 {
		read = bytes.TrimLeft(read, whiteSpace)
	}
	for ; f.scanned < len(read); f.scanned++ {
		if f.ends(read[f.scanned]) {
			end := f.scanned + 1
			*f = jsonFrames{}
			return read[:end], bytes.TrimLeft(read[end:], whiteSpace), nil
		}
	}
	if len(read) > maxFrame {
		return nil, nil, streaming.ErrObjectTooLarge
	}
	return nil, read, nil
}

// ends returns whether a frame ends with the byte. What is no JSON object is a frame as well, which can't be decoded.
func (f *jsonFrames) ends(next byte) bool {
	switch {
	case f.escaped:
		f.escaped = false
	case f.quoted && next == '\\':
		f.escaped = true
	case next == '"':
		f.quoted = !f.quoted
	case f.quoted:
	case next == '{', next == '[':
		f.depth++
		return false
	case next == '}', next == ']':
		f.depth--
	}
	return f.depth <= 0 && !f.quoted && !f.escaped
}
