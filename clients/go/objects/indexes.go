package objects

import (
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
)

// Index returns the keys under which Find finds an object. It is called with the objects of every kind.
type Index func(*Object) []string

// indexes are the functions by name, ordered.
type indexes struct {
	names     []string
	functions []Index
	failed    func(*Object, error)
}

func newIndexes(given map[string]Index, failed func(*Object, error)) *indexes {
	i := &indexes{names: slices.Sorted(maps.Keys(given)), failed: failed}
	for _, name := range i.names {
		i.functions = append(i.functions, given[name])
	}
	return i
}

func (i *indexes) empty() []map[string]bucket {
	found := make([]map[string]bucket, len(i.functions))
	for number := range found {
		found[number] = map[string]bucket{}
	}
	return found
}

// keys returns the keys of an object in each index; nil without an object.
func (i *indexes) keys(object *Object) [][]string {
	if object == nil || len(i.functions) == 0 {
		return nil
	}
	keys := make([][]string, len(i.functions))
	for number, function := range i.functions {
		keys[number] = i.call(i.names[number], function, object)
	}
	return keys
}

// call recovers from panics: an object with an unexpected content must not end the process.
func (i *indexes) call(name string, function Index, object *Object) (keys []string) {
	defer func() {
		if problem := recover(); problem != nil {
			i.failed(object, fmt.Errorf("index %q panicked for %s %s, which is missing there: %v\n%s",
				name, object.Resource, place{object.Namespace, object.Name}, problem, debug.Stack()))
		}
	}()
	return function(object)
}

// keyOverhead is the memory of a key in an index besides its text.
const keyOverhead = 96

// keyBytes returns approximately how many bytes the keys of an object take in the indexes.
func keyBytes(keys [][]string) (bytes int64) {
	for _, of := range keys {
		for _, key := range of {
			bytes += int64(keyOverhead + len(key))
		}
	}
	return bytes
}

// bucket has the objects of one key: most keys have one.
type bucket struct {
	one  *Object
	more map[*Object]struct{} // in place of one
}

func (b bucket) appendTo(found []*Object) []*Object {
	if b.one != nil {
		return append(found, b.one)
	}
	return slices.AppendSeq(found, maps.Keys(b.more))
}

func add(found []map[string]bucket, keys [][]string, object *Object) {
	for index, of := range keys {
		for _, key := range of {
			held, ok := found[index][key]
			switch {
			case !ok:
				held.one = object
			case held.one == object:
			case held.one != nil:
				held = bucket{more: map[*Object]struct{}{held.one: {}, object: {}}}
			default:
				held.more[object] = struct{}{}
			}
			found[index][key] = held
		}
	}
}

func remove(found []map[string]bucket, keys [][]string, object *Object) {
	for index, of := range keys {
		for _, key := range of {
			held := found[index][key]
			delete(held.more, object)
			if held.one == object || held.one == nil && len(held.more) == 0 {
				delete(found[index], key)
			}
		}
	}
}
