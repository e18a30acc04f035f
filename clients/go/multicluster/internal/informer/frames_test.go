package informer

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
)

// frames returns what is found in the text, which comes in parts.
func frames(of split, text string, part int) (found []string, rest string) {
	var read []byte
	for _, each := range slices.Collect(slices.Chunk([]byte(text), part)) {
		read = append(read, each...)
		for {
			frame, after, err := of.split(read)
			if read = after; err != nil || frame == nil {
				break
			}
			found = append(found, string(frame))
		}
	}
	return found, string(read)
}

func delimited(texts ...string) string {
	var all []byte
	for _, each := range texts {
		all = append(binary.BigEndian.AppendUint32(all, uint32(len(each))), each...)
	}
	return string(all)
}

func TestFramesAreFoundInAnyParts(t *testing.T) {
	for _, of := range []struct {
		mediaType, text string
		frames          []string
		rest            string
	}{
		{runtime.ContentTypeJSON, `{"a":1}` + "\n" + `{"a":2}` + "\n", []string{`{"a":1}`, `{"a":2}`}, ""},
		{runtime.ContentTypeJSON, `{"a":1}{"b":[{},{}]}`, []string{`{"a":1}`, `{"b":[{},{}]}`}, ""},
		{runtime.ContentTypeJSON, "{\n  \"a\": {}\n}\n\n", []string{"{\n  \"a\": {}\n}"}, ""},
		{runtime.ContentTypeJSON, `{"}":"\\\"}{"}` + "\n", []string{`{"}":"\\\"}{"}`}, ""},
		{runtime.ContentTypeJSON, `{"a":1}` + "\n" + `{"b":"}`, []string{`{"a":1}`}, `{"b":"}`},
		{runtime.ContentTypeProtobuf, delimited("one", "", "three"), []string{"one", "", "three"}, ""},
		{runtime.ContentTypeProtobuf, delimited("one", "two")[:12], []string{"one"}, delimited("two")[:5]},
	} {
		for part := 1; part <= len(of.text); part++ {
			found, rest := frames(framesOf(of.mediaType), of.text, part)
			if !slices.Equal(found, of.frames) || rest != of.rest {
				t.Errorf("%q in parts of %d: %q and %q", of.text, part, found, rest)
			}
		}
	}
}

func TestFramesAreLimited(t *testing.T) {
	for mediaType, text := range map[string]string{
		runtime.ContentTypeJSON: `{"` + strings.Repeat("a", maxFrame), runtime.ContentTypeProtobuf: "\xff\xff\xff\xff",
	} {
		if _, _, err := framesOf(mediaType).split([]byte(text)); !errors.Is(err, streaming.ErrObjectTooLarge) {
			t.Errorf("%s: %v", mediaType, err)
		}
	}
	if framesOf("application/cbor-seq") != nil {
		t.Error("frames of an unknown type")
	}
}
