package objects

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"regexp"
	"slices"
)

// field is a field of the objects of a kind: kept as a whole, or with some fields of its own or of its elements. The
// zero value keeps nothing.
type field struct {
	isWhole bool
	fields  map[string]*field
	each    *field // of the elements of a list
}

var (
	step        = regexp.MustCompile(`^(?:\.((?:[^.\[\]\\]|\\.)+)|\[\*\])`)
	escaped     = regexp.MustCompile(`\\(.)`)
	identifying = []string{"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"}
)

const (
	elements      = "" // the step of a path to the elements of a list
	metadataField = "metadata"
)

// steps returns the keys of a path, and elements.
func steps(path string) ([]string, error) {
	var found []string
	for rest := "." + path; rest != ""; {
		match := step.FindStringSubmatch(rest)
		if match == nil {
			return nil, errors.New(`it is not the path of a field: write KEY.KEY, KEY[*].KEY for the elements of a list, and \. for a dot in a key`)
		}
		found = append(found, escaped.ReplaceAllString(match[1], "$1"))
		rest = rest[len(match[0]):]
	}
	for found[len(found)-1] == elements { // all elements, which is the list
		found = found[:len(found)-1]
	}
	return found, nil
}

func (f *field) add(path string) error {
	parts, err := steps(path)
	switch {
	case err != nil:
		return err
	case slices.Equal(parts, []string{metadataField}):
		return errors.New("the metadata as a whole changes with each write: name its fields, as in metadata.labels")
	case parts[0] == metadataField && slices.Contains(identifying, parts[1]):
		return errors.New("it is kept of every object: leave it out")
	}
	for _, part := range parts {
		if f.isWhole {
			return nil
		}
		if part == elements && f.fields != nil || part != elements && f.each != nil {
			return errors.New("another path has one of its fields as an object, and this one as a list, or the other way round")
		}
		if part == elements {
			if f.each == nil {
				f.each = &field{}
			}
			f = f.each
			continue
		}
		if f.fields == nil {
			f.fields = map[string]*field{}
		}
		if f.fields[part] == nil {
			f.fields[part] = &field{}
		}
		f = f.fields[part]
	}
	*f = field{isWhole: true}
	return nil
}

// isOnly reports whether no field outside of this one is kept.
func (f *field) isOnly(name string) bool {
	for other := range f.fields {
		if other != name {
			return false
		}
	}
	return true
}

// project returns the named fields that a value has, at their places within it, as JSON; nil if it has none. The others
// are skipped undecoded, and so is a value of another type than the paths say.
func (f *field) project(value json.RawMessage) json.RawMessage {
	switch {
	case f.isWhole:
		return value
	case f.each != nil:
		var items []json.RawMessage
		if json.Unmarshal(value, &items) != nil || items == nil {
			return nil
		}
		for i, item := range items {
			if bytes.Equal(item, []byte("null")) {
				continue
			}
			if items[i] = f.each.project(item); items[i] == nil {
				items[i] = json.RawMessage("{}") // it stays, or the others would move
			}
		}
		return joined('[', items, ']')
	case f.fields == nil:
		return nil
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(value, &fields) != nil {
		return nil
	}
	var kept []json.RawMessage
	for _, name := range slices.Sorted(maps.Keys(f.fields)) {
		if found, ok := fields[name]; ok {
			if found = f.fields[name].project(found); found != nil {
				kept = append(kept, slices.Concat(quoted(name), []byte(":"), found))
			}
		}
	}
	if kept == nil {
		return nil
	}
	return joined('{', kept, '}')
}

func joined(opening byte, parts []json.RawMessage, closing byte) json.RawMessage {
	size := 1 + len(parts)
	for _, part := range parts {
		size += len(part)
	}
	all := append(make(json.RawMessage, 0, size), opening)
	for i, part := range parts {
		if i > 0 {
			all = append(all, ',')
		}
		all = append(all, part...)
	}
	return append(all, closing)
}

func quoted(key string) []byte {
	text, err := json.Marshal(key)
	if err != nil {
		panic(err) // cannot happen: it is a string
	}
	return text
}
