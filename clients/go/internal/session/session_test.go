package session

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "go.miloapis.com/discovery/v1"
)

// TestEveryClusterFieldIsCompared fails if neither visiblyEqual nor sameBookkeeping compares a new field of the proto
// file.
func TestEveryClusterFieldIsCompared(t *testing.T) {
	bookkeeping := []protoreflect.Name{"engaged_at", "source_resource_version", "incarnation", "since"}
	plain := &pb.Cluster{}
	check := func(cluster *pb.Cluster, field protoreflect.Name) {
		isBookkeeping := slices.Contains(bookkeeping, field)
		if visiblyEqual(plain, cluster) != isBookkeeping || sameBookkeeping(plain, cluster) == isBookkeeping {
			t.Errorf("a change of %s must be detected by exactly one of visiblyEqual and sameBookkeeping", field)
		}
	}
	fields := plain.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if field := fields.Get(i); field.Name() != "connectivity" {
			cluster := &pb.Cluster{}
			set(cluster.ProtoReflect(), field)
			check(cluster, field.Name())
		}
	}
	plain.Connectivity = &pb.Connectivity{}
	fields = plain.GetConnectivity().ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		cluster := proto.CloneOf(plain)
		set(cluster.GetConnectivity().ProtoReflect(), fields.Get(i))
		check(cluster, fields.Get(i).Name())
	}
}

// set sets a field to a value other than its default.
func set(message protoreflect.Message, field protoreflect.FieldDescriptor) {
	switch {
	case field.IsMap():
		entries := message.Mutable(field).Map()
		entries.Set(protoreflect.ValueOfString("key").MapKey(), protoreflect.ValueOfString("value"))
	case field.IsList():
		entries := message.Mutable(field).List()
		entries.Append(entries.NewElement())
	case field.Kind() == protoreflect.MessageKind:
		set(message.Mutable(field).Message(), field.Message().Fields().Get(0))
	case field.Kind() == protoreflect.StringKind:
		message.Set(field, protoreflect.ValueOfString("value"))
	case field.Kind() == protoreflect.BoolKind:
		message.Set(field, protoreflect.ValueOfBool(true))
	case field.Kind() == protoreflect.EnumKind:
		message.Set(field, protoreflect.ValueOfEnum(1))
	case field.Kind() == protoreflect.Int64Kind:
		message.Set(field, protoreflect.ValueOfInt64(1))
	default:
		panic("no value for a field of kind " + field.Kind().String())
	}
}
