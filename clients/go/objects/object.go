package objects

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unique"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	jsonutil "k8s.io/apimachinery/pkg/util/json"
)

// Object is an object without the fields that are not named. Do not change it: others read it, too.
type Object struct {
	// Cluster is the engagement that the object is in.
	Cluster Cluster
	// Resource is that of its Kind.
	Resource  string
	Namespace string
	Name      string
	UID       string
	// Content has the named fields that the object has, at their places within it, as JSON: see Fields.
	Content json.RawMessage
	// ResourceVersion and Generation are those of the state that was last reported. The object may have newer ones, since
	// a change of other fields reports nothing: unusable as preconditions.
	ResourceVersion     string
	Generation          int64
	CreatedAt           time.Time
	DeletionRequestedAt time.Time
}

// Fields returns the named fields that the object has, at their places within it, for the functions of package
// unstructured. They are decoded at each call; for a type of yours, use json.Unmarshal(object.Content, &typed).
func (o *Object) Fields() map[string]any {
	fields := map[string]any{}
	if len(o.Content) > 0 {
		_ = jsonutil.Unmarshal(o.Content, &fields) // it was decoded before
	}
	return fields
}

// equals reports whether nothing that is kept differs, other than the resource version and the generation.
func (o *Object) equals(other *Object) bool {
	return o.UID == other.UID && string(o.Content) == string(other.Content) &&
		o.CreatedAt.Equal(other.CreatedAt) && o.DeletionRequestedAt.Equal(other.DeletionRequestedAt)
}

// overheadBytes is the memory of an object besides its texts, with its places in maps.
const overheadBytes = 400

func (o *Object) bytes() int64 {
	return int64(overheadBytes + len(o.Namespace) + len(o.Name) + len(o.UID) + len(o.ResourceVersion) + len(o.Content))
}

// place is the namespace and name of an object.
type place struct{ namespace, name string }

func (p place) String() string { return strings.TrimPrefix(p.namespace+"/"+p.name, "/") }

// seen is an object as a list or a watch contained it, for client-go's reflector.
type seen struct {
	metav1.ObjectMeta         // only what the reflector reads
	object            *Object // nil if the object is outside of the label selector, or malformed
	problem           error   // why it is malformed
}

func (s *seen) place() place                     { return place{s.Namespace, s.Name} }
func (s *seen) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }
func (s *seen) DeepCopyObject() runtime.Object {
	copied := *s
	return &copied
}

// seenList is a page of a list.
type seenList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []*seen
}

func (l *seenList) DeepCopyObject() runtime.Object {
	copied := *l
	return &copied
}

// identity is what tells objects apart.
type identity struct {
	Name            string `json:"name"`
	Namespace       string `json:"namespace"`
	ResourceVersion string `json:"resourceVersion"`
}

type metadata struct {
	UID               string            `json:"uid"`
	Generation        int64             `json:"generation"`
	CreationTimestamp metav1.Time       `json:"creationTimestamp"`
	DeletionTimestamp metav1.Time       `json:"deletionTimestamp"`
	Labels            map[string]string `json:"labels"`
}

// decode decodes an object of the kind. It fails for an object without a name.
func (k *kind) decode(cluster Cluster, raw json.RawMessage) (*seen, error) {
	var found struct{ Metadata json.RawMessage }
	var of identity
	err := json.Unmarshal(raw, &found)
	if err == nil {
		err = json.Unmarshal(found.Metadata, &of)
	}
	if err != nil || of.Name == "" {
		return nil, fmt.Errorf("an object of %s has no metadata with a name: %w", k.resource, err)
	}
	decoded := &seen{ObjectMeta: metav1.ObjectMeta{Name: of.Name, Namespace: of.Namespace, ResourceVersion: of.ResourceVersion}}
	var m metadata
	if err := json.Unmarshal(found.Metadata, &m); err != nil {
		decoded.problem = fmt.Errorf("%s %s is malformed, and its last state stays: %w", k.resource, decoded.place(), err)
		return decoded, nil
	}
	if k.selector.Matches(labels.Set(m.Labels)) {
		decoded.object = &Object{
			Cluster: cluster, Resource: k.resource, Namespace: unique.Make(of.Namespace).Value(), Name: of.Name, UID: m.UID,
			Content: k.projection.project(raw), ResourceVersion: of.ResourceVersion, Generation: m.Generation,
			CreatedAt: m.CreationTimestamp.Time, DeletionRequestedAt: m.DeletionTimestamp.Time,
		}
	}
	return decoded, nil
}

// decodeList decodes a page of a list one object at a time, so that only what is kept of them takes memory. It keeps the
// objects of which keep returns true, and fails with its error.
func (k *kind) decodeList(cluster Cluster, decoder *json.Decoder, keep func(*seen) (bool, error)) (*seenList, error) {
	list := &seenList{}
	if err := expect(decoder, json.Delim('{')); err != nil {
		return nil, err
	}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		switch name {
		case metadataField:
			err = decoder.Decode(&list.ListMeta)
		case "items":
			err = eachItem(decoder, func(raw json.RawMessage) error {
				found, err := k.decode(cluster, raw)
				if err != nil {
					return err
				}
				isKept, err := keep(found)
				if isKept {
					list.Items = append(list.Items, found)
				}
				return err
			})
		default:
			err = decoder.Decode(&json.RawMessage{})
		}
		if err != nil {
			return nil, err
		}
	}
	if err := expect(decoder, json.Delim('}')); err != nil {
		return nil, err
	}
	if list.ResourceVersion == "" {
		return nil, errors.New("the list has no resource version")
	}
	return list, nil
}

func eachItem(decoder *json.Decoder, item func(json.RawMessage) error) error {
	opening, err := decoder.Token()
	switch {
	case err != nil:
		return err
	case opening == nil: // null
		return nil
	case opening != json.Delim('['):
		return fmt.Errorf("the items of the list begin with %v", opening)
	}
	for decoder.More() {
		var raw json.RawMessage
		if err := decoder.Decode(&raw); err != nil {
			return err
		}
		if err := item(raw); err != nil {
			return err
		}
	}
	_, err = decoder.Token() // the closing delimiter
	return err
}

func expect(decoder *json.Decoder, wanted json.Delim) error {
	found, err := decoder.Token()
	if err == nil && found != wanted {
		err = fmt.Errorf("the list has %v in place of %v", found, wanted)
	}
	return err
}
