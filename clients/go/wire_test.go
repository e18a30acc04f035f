package discovery

import (
	"errors"
	"reflect"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "go.miloapis.com/discovery/v1"
)

func TestRequestTooLongForTheDaemonIsInvalid(t *testing.T) {
	refused := status.Error(codes.ResourceExhausted, "SERVER: Received message larger than max (102704 vs. 98304)")
	err := statusError(t.Context(), "WatchClusters", refused)
	if !IsTerminal(err) || !errors.Is(err, ErrInvalidRequest) {
		t.Errorf("%v is not an ErrInvalidRequest", err)
	}
}

// TestEveryFieldIsConverted fails if the proto file has a field that the client's model lacks.
func TestEveryFieldIsConverted(t *testing.T) {
	check := func(message proto.Message, converted any) {
		t.Helper()
		fields, value := message.ProtoReflect().Descriptor().Fields(), reflect.ValueOf(converted)
		if fields.Len() != value.NumField() {
			t.Errorf("%T has %d fields, want %d as in its message", converted, value.NumField(), fields.Len())
		}
		for i := range value.NumField() {
			if value.Field(i).IsZero() {
				t.Errorf("%T.%s is not converted", converted, value.Type().Field(i).Name)
			}
		}
	}
	cluster := filled(&pb.Cluster{})
	check(cluster, toCluster(cluster))
	check(cluster.GetDraining(), *toDraining(cluster.GetDraining()))
	check(cluster.GetSuspensions()[0], toSuspensions(cluster.GetSuspensions())[0])
	kubeconfig := filled(&pb.Kubeconfig{})
	check(kubeconfig, *toKubeconfig(kubeconfig))
	report := filled(&pb.GetClusterResponse{})
	check(report, *toReport(report))
	check(report.GetEngagement(), toReport(report).Engagement)
	check(report.GetTransitions()[0], toReport(report).Transitions[0])
	check(report.GetPendingReleases()[0], toReport(report).PendingReleases[0])
	info := filled(&pb.GetServerInfoResponse{})
	converted := toServerInfo(info)
	check(info, *converted)
	check(info.GetSource(), converted.Source)
	check(info.GetCounts(), converted.Counts)
	check(info.GetLimits(), converted.Limits)
	check(info.GetCredentialIssuers()[0], converted.CredentialIssuers[0])
	check(info.GetSources()[0], converted.Sources[0])
	check(info.GetSharding(), *converted.Sharding)
	check(info.GetSharding().GetMembers()[0], converted.Sharding.Members[0])
	filter := Filter{LabelSelector: "a", Names: []string{"a"}, Organizations: []string{"a"}, Sources: []string{"a"}}
	check(fromFilter(filter), filter)
	sent := fromFilter(filter).ProtoReflect()
	for i := range sent.Descriptor().Fields().Len() {
		if field := sent.Descriptor().Fields().Get(i); !sent.Has(field) {
			t.Errorf("%s is not sent", field.FullName())
		}
	}
}

// filled sets each field of a message, recursively, to a value other than its default.
func filled[M proto.Message](message M) M {
	fill(message.ProtoReflect())
	return message
}

func fill(message protoreflect.Message) {
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		switch field := fields.Get(i); {
		case field.IsMap():
			entries := message.Mutable(field).Map()
			entries.Set(protoreflect.ValueOfString("key").MapKey(), scalar(field.MapValue()))
		case field.IsList() && field.Message() != nil:
			fill(message.Mutable(field).List().AppendMutable().Message())
		case field.IsList():
			message.Mutable(field).List().Append(scalar(field))
		case field.Message() != nil:
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
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(1)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("value"))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("value")
	default:
		panic("no value for a field of kind " + field.Kind().String())
	}
}
