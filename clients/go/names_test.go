package discovery

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	pb "go.miloapis.com/discovery/v1"
)

// constantsOf parses model.go, and returns the values of its constants by type.
func constantsOf(t *testing.T) map[string][]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "model.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	ast.Inspect(file, func(node ast.Node) bool {
		spec, isValue := node.(*ast.ValueSpec)
		if !isValue || len(spec.Values) != 1 {
			return true
		}
		if kind, isNamed := spec.Type.(*ast.Ident); isNamed {
			if value, isLiteral := spec.Values[0].(*ast.BasicLit); isLiteral {
				found[kind.Name] = append(found[kind.Name], strings.Trim(value.Value, `"`))
			}
		}
		return true
	})
	return found
}

func TestEnumsHaveAllValuesOfTheProtoFile(t *testing.T) {
	constants := constantsOf(t)
	for kind, values := range map[string]struct {
		prefix string
		known  map[string]int32
	}{
		"EngagementReason":  {"REASON_", pb.Engagement_Reason_value},
		"DisengageReason":   {"DISENGAGE_REASON_", pb.DisengageReason_value},
		"EventType":         {"TYPE_", pb.ClusterEvent_Type_value},
		"ConnectivityState": {"STATE_", pb.Connectivity_State_value},
		"SourceState":       {"STATE_", pb.SourceStatus_State_value},
	} {
		for _, name := range slices.Sorted(maps.Keys(values.known)) {
			name = strings.TrimPrefix(name, values.prefix)
			if name != "UNSPECIFIED" && !slices.Contains(constants[kind], name) {
				t.Errorf("%s has no constant for %s", kind, name)
			}
		}
	}
}

func TestFleetCountsHasAllFieldsOfTheProtoFile(t *testing.T) {
	message := &pb.FleetCounts{}
	fields := message.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		reflect.ValueOf(message).Elem().FieldByNameFunc(func(name string) bool {
			return strings.EqualFold(name, strings.ReplaceAll(string(fields.Get(i).Name()), "_", ""))
		}).SetInt(int64(i + 1))
	}
	converted := reflect.ValueOf(toCounts(message))
	counted := make([]int64, 0, converted.NumField())
	for i := range converted.NumField() {
		counted = append(counted, converted.Field(i).Int())
	}
	slices.Sort(counted)
	for i := range fields.Len() {
		if len(counted) != fields.Len() || counted[i] != int64(i+1) {
			t.Fatalf("the converted counts are %v, want 1 to %d", counted, fields.Len())
		}
	}
}
