package discoverytest

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "go.miloapis.com/discovery/v1"
)

// fill sets every field of a message to a value other than its default.
func fill(message protoreflect.Message) {
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		switch {
		case field.IsMap():
			message.Mutable(field).Map().Set(protoreflect.ValueOfString("key").MapKey(), protoreflect.ValueOfString("value"))
		case field.IsList():
			fill(message.Mutable(field).List().AppendMutable().Message())
		case field.Kind() == protoreflect.MessageKind:
			fill(message.Mutable(field).Message())
		default:
			message.Set(field, scalar(field))
		}
	}
}

func scalar(field protoreflect.FieldDescriptor) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1)
	default:
		return protoreflect.ValueOfString(string(field.Name()))
	}
}

func TestClustersKeepAllFieldsOfTheProtocol(t *testing.T) {
	message := &pb.Cluster{}
	fill(message.ProtoReflect())
	if again := fromCluster(toCluster(message)); !proto.Equal(again, message) {
		t.Errorf("got %v, want %v", again, message)
	}
}
