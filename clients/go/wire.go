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
	}
}

// fromSpan leaves a duration unset that is zero.
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

// toName converts an enum to the name of its value without the prefix. What this client cannot name is empty.
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
		Connectivity: Connectivity{
			State:   toName[ConnectivityState](message.GetConnectivity().GetState(), "STATE_"),
			Since:   toTime(message.GetConnectivity().GetSince()),
			Message: message.GetConnectivity().GetMessage(),
		},
		SourceResourceVersion: message.GetSourceResourceVersion(),
		Incarnation:           message.GetIncarnation(),
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
	}
}

func toReport(message *pb.GetClusterResponse) *Report {
	report := &Report{
		Engagement: Engagement{
			Engaged: message.GetEngagement().GetEngaged(),
			Reason:  toName[EngagementReason](message.GetEngagement().GetReason(), "REASON_"),
			Message: message.GetEngagement().GetMessage(),
			Since:   toTime(message.GetEngagement().GetSince()),
		},
	}
	if message.GetCluster() != nil {
		cluster := toCluster(message.GetCluster())
		report.Cluster = &cluster
	}
	for _, each := range message.GetTransitions() {
		report.Transitions = append(report.Transitions, Transition{
			Type:        toName[EventType](each.GetType(), "TYPE_"),
			Reason:      toReason(each.GetReason()),
			Message:     each.GetMessage(),
			At:          toTime(each.GetAt()),
			Incarnation: each.GetIncarnation(),
		})
	}
	for _, each := range message.GetPendingReleases() {
		report.PendingReleases = append(report.PendingReleases, PendingRelease{
			Subscriber: each.GetSubscriber(),
			Caller:     each.GetCaller(),
			Connected:  each.GetConnected(),
			Since:      toTime(each.GetSince()),
		})
	}
	return report
}

func toServerInfo(message *pb.GetServerInfoResponse) *ServerInfo {
	counts, limits := message.GetCounts(), message.GetLimits()
	info := &ServerInfo{
		Version:     message.GetVersion(),
		Mode:        message.GetMode(),
		Incarnation: message.GetIncarnation(),
		StartedAt:   toTime(message.GetStartedAt()),
		Source:      toSource(message.GetSource()),
		Synced:      message.GetSynced(),
		Counts: FleetCounts{
			Engaged:         int(counts.GetEngaged()),
			NotReady:        int(counts.GetNotReady()),
			OutsideSelector: int(counts.GetOutsideSelector()),
			Malformed:       int(counts.GetMalformed()),
			Subscribers:     int(counts.GetSubscribers()),
			Draining:        int(counts.GetDraining()),
		},
		Limits: Limits{
			DefaultHeartbeatInterval: limits.GetDefaultHeartbeatInterval().AsDuration(),
			StalledTimeout:           limits.GetStalledTimeout().AsDuration(),
			MaxKubeconfigTTL:         limits.GetMaxKubeconfigTtl().AsDuration(),
			MaxPageSize:              int(limits.GetMaxPageSize()),
			MaxFilterBytes:           int(limits.GetMaxFilterBytes()),
		},
	}
	for _, each := range message.GetCredentialSources() {
		info.CredentialSources = append(info.CredentialSources, CredentialSource{
			Name:      each.GetName(),
			Type:      each.GetType(),
			Healthy:   each.GetHealthy(),
			Message:   each.GetMessage(),
			ExpiresAt: toTime(each.GetExpiresAt()),
		})
	}
	return info
}
