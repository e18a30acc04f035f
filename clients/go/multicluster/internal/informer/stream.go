package informer

import (
	"bytes"
	"errors"
	"io"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	restwatch "k8s.io/client-go/rest/watch"
)

// stream is an open watch. Client-go's watch.StreamWatcher waits for events with a goroutine that has a deep stack and two
// buffers. A stream that has taken the response waits without both, and has client-go's decoders for what comes.
type stream struct {
	theirs watch.Interface // client-go's, if the response was not taken

	taken
	events  runtime.Decoder
	objects runtime.Decoder
	first   [1]byte
	read    []byte // not decoded; empty between two events
	failed  error  // of the body

	began time.Time
	count int
}

// newStream returns the stream for a watch of which a response may have been taken.
func newStream(theirs watch.Interface, from taken, negotiator runtime.ClientNegotiator) (*stream, error) {
	if from.body == nil {
		return &stream{theirs: drained{theirs}, began: time.Now()}, nil
	}
	theirs.Stop()
	objects, events, _, err := negotiator.StreamDecoder(from.mediaType, from.parameters)
	if err != nil {
		_ = from.body.Close()
		return nil, err
	}
	return &stream{taken: from, events: events, objects: objects, began: time.Now()}, nil
}

// wait returns when there is something to decode, or an error. White space is not: it may come long before the next frame,
// since a read can end before the line end of the last one.
func (s *stream) wait() {
	for s.theirs == nil && len(s.read) == 0 && s.failed == nil {
		var n int
		if n, s.failed = s.body.Read(s.first[:]); n > 0 && s.frames.begins(s.first[0]) {
			s.read = append(make([]byte, 0, bytes.MinRead), s.first[0])
		}
	}
}

// next returns the next event.
func (s *stream) next() (e watch.Event, err error) {
	if s.theirs != nil {
		var ok bool
		if e, ok = <-s.theirs.ResultChan(); !ok {
			return e, io.EOF
		}
	} else if e.Type, e.Object, err = restwatch.NewDecoder(s, s.objects).Decode(); err != nil {
		return e, err
	}
	s.count++
	return e, nil
}

// Decode implements streaming.Decoder.
func (s *stream) Decode(defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	for {
		frame, rest, err := s.frames.split(s.read)
		if err != nil {
			return nil, nil, err
		}
		if s.read = rest; len(rest) == 0 {
			s.read = nil
		}
		if frame != nil {
			return s.events.Decode(frame, defaults, into)
		}
		if err := s.receive(); err != nil {
			return nil, nil, err
		}
	}
}

// Close implements streaming.Decoder.
func (s *stream) Close() error {
	if s.theirs != nil {
		s.theirs.Stop()
		return nil
	}
	return s.body.Close()
}

// receive appends to what was read.
func (s *stream) receive() error {
	if s.failed == nil {
		if len(s.read) == cap(s.read) {
			s.read = append(make([]byte, 0, max(bytes.MinRead, 2*cap(s.read))), s.read...)
		}
		var n int
		n, s.failed = s.body.Read(s.read[len(s.read):cap(s.read)])
		if s.read = s.read[:len(s.read)+n]; n > 0 {
			return nil
		}
	}
	if errors.Is(s.failed, io.EOF) && len(s.read) > 0 {
		return io.ErrUnexpectedEOF
	}
	return s.failed
}
