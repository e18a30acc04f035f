package objects

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestProjectionKeepsTheNamedFieldsAtTheirPlaces(t *testing.T) {
	const object = `{"apiVersion": "v1", "kind": "Thing", "metadata": {"name": "a", "labels": {"x": "1"}, "annotations": {"example.com/b": "2", "c": "3"},
		"managedFields": [{}]}, "spec": {"placements": [{"cityCodes": ["A", "B"], "x": 1}, {"x": 2}, null, 5, {"cityCodes": []}], "n": 1.5},
		"status": {"phase": "Active", "conditions": [{"type": "Ready"}]}, "text": "t"}`
	for _, each := range []struct {
		fields []string
		want   string
	}{
		{nil, ""},
		{[]string{"metadata.labels", "status.phase"}, `{"metadata":{"labels":{"x": "1"}},"status":{"phase":"Active"}}`},
		{[]string{`metadata.annotations.example\.com/b`}, `{"metadata":{"annotations":{"example.com/b":"2"}}}`},
		{[]string{"spec.placements[*].cityCodes"}, `{"spec":{"placements":[{"cityCodes":["A", "B"]},{},null,{},{"cityCodes":[]}]}}`},
		{[]string{"status.conditions[*]"}, `{"status":{"conditions":[{"type": "Ready"}]}}`},
		{[]string{"status.phase", "status"}, `{"status":{"phase": "Active", "conditions": [{"type": "Ready"}]}}`},
		{[]string{"status", "status.phase"}, `{"status":{"phase": "Active", "conditions": [{"type": "Ready"}]}}`},
		{[]string{"spec.n", "spec.absent", "text"}, `{"spec":{"n":1.5},"text":"t"}`},
		{[]string{"absent", "spec.absent.of", "text.of", "spec.n[*].of", "spec.placements.of"}, ""}, // other types than the paths say
	} {
		checked, err := Kind{Resource: "example.com/v1/things", Fields: each.fields}.check()
		if err != nil {
			t.Errorf("%q: %v", each.fields, err)
			continue
		}
		if got := string(checked.projection.project(json.RawMessage(object))); got != each.want {
			t.Errorf("%q: got %s, want %s", each.fields, got, each.want)
		}
	}
}

func TestKindsThatCannotBeFollowedAreRefused(t *testing.T) {
	things := func(fields ...string) []Kind { return []Kind{{Resource: "v1/things", Fields: fields}} }
	for problem, kinds := range map[string][]Kind{
		"no Kinds":                   nil,
		"does not name a resource":   {{Resource: "namespaces"}},
		`"V1/x" does not name`:       {{Resource: "V1/x"}},
		"given twice":                {{Resource: "v1/things"}, {Resource: "v1/things", LabelSelector: "a"}},
		"Secrets: true":              {{Resource: "v1/secrets"}},
		"label selector":             {{Resource: "v1/things", LabelSelector: "in (("}},
		`field "": it is not`:        things(""),
		`field "[*].a": it is`:       things("[*].a"),
		`field "a..b": it is`:        things("a..b"),
		`field "a.": it is`:          things("a."),
		`field ".a": it is`:          things(".a"),
		`field "a[0]": it is`:        things("a[0]"),
		"the metadata as a whole":    things("metadata"),
		"kept of every object":       things("metadata.name"),
		"as an object, and this one": things("a.b", "a[*].c"),
	} {
		if _, err := New(nil, Options{Kinds: kinds}); err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("%v: error %v, want one with %q", kinds, err, problem)
		}
	}
	for _, fits := range [][]Kind{
		{{Resource: "v1/secrets", Secrets: true}},
		{{Resource: "example.com/v1/secrets"}},
		things(`a\.b.c`, "a[*].b[*]"),
	} {
		if _, err := checkKinds(fits); err != nil {
			t.Errorf("%v: %v", fits, err)
		}
	}
}

func TestMetadataIsAskedForAloneIfNoOtherFieldIsKept(t *testing.T) {
	for _, each := range []struct {
		fields []string
		want   bool
	}{{nil, true}, {[]string{"metadata.labels"}, true}, {[]string{"metadata.labels", "spec"}, false}} {
		if checked, err := (Kind{Resource: "v1/things", Fields: each.fields}).check(); err != nil || checked.metadataOnly != each.want {
			t.Errorf("%q: metadata only is %v, error %v; want %v", each.fields, checked.metadataOnly, err, each.want)
		}
	}
}
