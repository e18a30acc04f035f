package discovery

import (
	"bytes"
	"fmt"
	"maps"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"go.miloapis.com/discovery/internal/session"
	pb "go.miloapis.com/discovery/v1"
)

func fromFilter(filter Filter) *pb.ClusterFilter {
	return &pb.ClusterFilter{
		LabelSelector: filter.LabelSelector,
		Names:         filter.Names,
		Organizations: filter.Organizations,
		Sources:       filter.Sources,
	}
}

// fromSpan converts a duration; zero becomes nil, an unset field.
func fromSpan(span time.Duration) *durationpb.Duration {
	if span == 0 {
		return nil
	}
	return durationpb.New(span)
}

func toTime(at *timestamppb.Timestamp) time.Time {
	if !at.IsValid() { // not set, or out of range
		return time.Time{}
	}
	return at.AsTime()
}

// convert converts each message. It returns nil for an empty slice.
func convert[Message, Value any](messages []Message, value func(Message) Value) []Value {
	if len(messages) == 0 {
		return nil
	}
	values := make([]Value, len(messages))
	for i, each := range messages {
		values[i] = value(each)
	}
	return values
}

// toName converts an enum value to its name without the prefix. It returns "" for values that are unknown to this
// client.
func toName[T ~string](value fmt.Stringer, prefix string) T {
	name, known := strings.CutPrefix(value.String(), prefix)
	if !known || name == "UNSPECIFIED" {
		return ""
	}
	return T(name)
}

func toReason(reason pb.DisengageReason) DisengageReason {
	return toName[DisengageReason](reason, "DISENGAGE_REASON_")
}

func toEvent(change session.Change) Event {
	return Event{
		Type:       EventType(change.Kind.String()),
		Cluster:    toCluster(change.Cluster),
		Reason:     toReason(change.Reason),
		Message:    change.Message,
		Kubeconfig: toKubeconfig(change.Kubeconfig),
	}
}

func toDraining(message *pb.Draining) *Draining {
	if message == nil {
		return nil
	}
	return &Draining{
		Reason:   toReason(message.GetReason()),
		Deadline: toTime(message.GetDeadline()),
		Message:  message.GetMessage(),
	}
}

func toSuspensions(messages []*pb.Suspension) []Suspension {
	return convert(messages, func(each *pb.Suspension) Suspension {
		return Suspension{
			Reason:             each.GetReason(),
			SuspendedAt:        toTime(each.GetSuspendedAt()),
			ReinstateAuthority: each.GetReinstateAuthority(),
			Message:            each.GetMessage(),
		}
	})
}

func toCluster(message *pb.Cluster) Cluster {
	return Cluster{
		Name:                message.GetName(),
		UID:                 message.GetUid(),
		Endpoint:            message.GetEndpoint(),
		Organization:        message.GetOrganization(),
		Labels:              maps.Clone(message.GetLabels()),
		Annotations:         maps.Clone(message.GetAnnotations()),
		EngagedAt:           toTime(message.GetEngagedAt()),
		DeletionRequestedAt: toTime(message.GetDeletionRequestedAt()),
		DeletionMessage:     message.GetDeletionMessage(),
		Suspended:           message.GetSuspended(),
		Suspensions:         toSuspensions(message.GetSuspensions()),
		Connectivity: Connectivity{
			State:   toName[ConnectivityState](message.GetConnectivity().GetState(), "STATE_"),
			Since:   toTime(message.GetConnectivity().GetSince()),
			Message: message.GetConnectivity().GetMessage(),
		},
		SourceResourceVersion: message.GetSourceResourceVersion(),
		Incarnation:           message.GetIncarnation(),
		Source:                message.GetSource(),
		Draining:              toDraining(message.GetDraining()),
	}
}

func toKubeconfig(message *pb.Kubeconfig) *Kubeconfig {
	if message == nil {
		return nil
	}
	return &Kubeconfig{
		Cluster:      message.GetCluster(),
		Content:      bytes.Clone(message.GetKubeconfig()),
		ExpiresAt:    toTime(message.GetExpiresAt()),
		RefreshAfter: toTime(message.GetRefreshAfter()),
		IssuedAt:     toTime(message.GetIssuedAt()),
	}
}

func toSource(message *pb.SourceStatus) SourceStatus {
	return SourceStatus{
		State:       toName[SourceState](message.GetState(), "STATE_"),
		Since:       toTime(message.GetSince()),
		Reason:      message.GetReason(),
		Message:     message.GetMessage(),
		LastContact: toTime(message.GetLastContact()),
		Name:        message.GetName(),
	}
}

func toReport(message *pb.GetClusterResponse) *Report {
	report := &Report{
		Engagement: Engagement{
			Engaged: message.GetEngagement().GetEngaged(),
			Reason:  toName[EngagementReason](message.GetEngagement().GetReason(), "REASON_"),
			Message: message.GetEngagement().GetMessage(),
			Since:   toTime(message.GetEngagement().GetSince()),

			// Daemons of earlier versions state only the reason.
			AssignedElsewhere: message.GetEngagement().GetAssignedElsewhere() ||
				message.GetEngagement().GetReason() == pb.Engagement_REASON_UNASSIGNED,
		},
		Source: toSource(message.GetSource()),
	}
	if message.GetCluster() != nil {
		cluster := toCluster(message.GetCluster())
		report.Cluster = &cluster
	}
	report.Transitions = convert(message.GetTransitions(), func(each *pb.Transition) Transition {
		return Transition{
			Type:        toName[EventType](each.GetType(), "TYPE_"),
			Reason:      toReason(each.GetReason()),
			Message:     each.GetMessage(),
			At:          toTime(each.GetAt()),
			Incarnation: each.GetIncarnation(),
		}
	})
	report.PendingReleases = convert(message.GetPendingReleases(), func(each *pb.PendingRelease) PendingRelease {
		return PendingRelease{
			Subscriber: each.GetSubscriber(),
			Caller:     each.GetCaller(),
			Connected:  each.GetConnected(),
			Since:      toTime(each.GetSince()),
		}
	})
	return report
}

func toServerInfo(message *pb.GetServerInfoResponse) *ServerInfo {
	limits := message.GetLimits()
	return &ServerInfo{
		Version:     message.GetVersion(),
		Mode:        message.GetMode(),
		Incarnation: message.GetIncarnation(),
		StartedAt:   toTime(message.GetStartedAt()),
		Source:      toSource(message.GetSource()),
		Synced:      message.GetSynced(),
		Counts:      toCounts(message.GetCounts()),
		CredentialIssuers: convert(message.GetCredentialIssuers(), func(each *pb.CredentialIssuer) CredentialIssuer {
			return CredentialIssuer{
				Name:            each.GetName(),
				Type:            each.GetType(),
				Healthy:         each.GetHealthy(),
				Message:         each.GetMessage(),
				ExpiresAt:       toTime(each.GetExpiresAt()),
				FailingClusters: each.GetFailingClusters(),
			}
		}),
		Limits: Limits{
			DefaultHeartbeatInterval: limits.GetDefaultHeartbeatInterval().AsDuration(),
			StalledTimeout:           limits.GetStalledTimeout().AsDuration(),
			MaxKubeconfigTTL:         limits.GetMaxKubeconfigTtl().AsDuration(),
			MaxPageSize:              int(limits.GetMaxPageSize()),
			MaxFilterBytes:           int(limits.GetMaxFilterBytes()),
		},
		Sources: convert(message.GetSources(), func(each *pb.Source) Source {
			return Source{
				Name:    each.GetName(),
				Kind:    each.GetKind(),
				Status:  toSource(each.GetStatus()),
				Synced:  each.GetSynced(),
				Counts:  toCounts(each.GetCounts()),
				Context: each.GetContext(),
			}
		}),
		Sharding: toSharding(message.GetSharding()),
		Context:  message.GetContext(),
	}
}

func toCounts(counts *pb.FleetCounts) FleetCounts {
	return FleetCounts{
		Engaged:         int(counts.GetEngaged()),
		NotReady:        int(counts.GetNotReady()),
		OutsideSelector: int(counts.GetOutsideSelector()),
		Malformed:       int(counts.GetMalformed()),
		Subscribers:     int(counts.GetSubscribers()),
		Draining:        int(counts.GetDraining()),
		Unreachable:     int(counts.GetUnreachable()),
		Unassigned:      int(counts.GetUnassigned()),
		Refused:         int(counts.GetRefused()),
	}
}

func toSharding(message *pb.Sharding) *Sharding {
	if message == nil {
		return nil
	}
	return &Sharding{
		Group:   message.GetGroup(),
		Member:  message.GetMember(),
		View:    message.GetView(),
		Settled: message.GetSettled(),
		Members: convert(message.GetMembers(), func(each *pb.ShardMember) ShardMember {
			return ShardMember{
				Name:             each.GetName(),
				Weight:           each.GetWeight(),
				InView:           each.GetInView(),
				Alive:            each.GetAlive(),
				Leaving:          each.GetLeaving(),
				AcknowledgedView: each.GetAcknowledgedView(),
				Clusters:         int(each.GetClusters()),
			}
		}),
		ValidFor: message.GetValidFor().AsDuration(),
		Problem:  message.GetProblem(),
		Draining: message.GetDraining(),
	}
}
