package discoverytest

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"go.miloapis.com/discovery"
	pb "go.miloapis.com/discovery/v1"
)

const (
	kubeconfigTTL = time.Hour
	refreshAfter  = kubeconfigTTL / 2
)

func fromTime(at time.Time) *timestamppb.Timestamp {
	if at.IsZero() {
		return nil
	}
	return timestamppb.New(at)
}

func toTime(at *timestamppb.Timestamp) time.Time {
	if at == nil {
		return time.Time{}
	}
	return at.AsTime()
}

func fromCluster(cluster discovery.Cluster) *pb.Cluster {
	message := &pb.Cluster{
		Name:                  cluster.Name,
		Uid:                   cluster.UID,
		Endpoint:              cluster.Endpoint,
		Organization:          cluster.Organization,
		Labels:                maps.Clone(cluster.Labels),
		Annotations:           maps.Clone(cluster.Annotations),
		EngagedAt:             fromTime(cluster.EngagedAt),
		DeletionRequestedAt:   fromTime(cluster.DeletionRequestedAt),
		DeletionMessage:       cluster.DeletionMessage,
		Suspended:             cluster.Suspended,
		SourceResourceVersion: cluster.SourceResourceVersion,
		Incarnation:           cluster.Incarnation,
		Source:                cluster.Source,
	}
	for _, each := range cluster.Suspensions {
		message.Suspensions = append(message.Suspensions, &pb.Suspension{
			Reason:             each.Reason,
			SuspendedAt:        fromTime(each.SuspendedAt),
			ReinstateAuthority: each.ReinstateAuthority,
			Message:            each.Message,
		})
	}
	if cluster.Connectivity != (discovery.Connectivity{}) {
		message.Connectivity = &pb.Connectivity{
			State:   pb.Connectivity_State(pb.Connectivity_State_value["STATE_"+string(cluster.Connectivity.State)]),
			Since:   fromTime(cluster.Connectivity.Since),
			Message: cluster.Connectivity.Message,
		}
	}
	if draining := cluster.Draining; draining != nil {
		message.Draining = &pb.Draining{
			Reason:   pb.DisengageReason(pb.DisengageReason_value["DISENGAGE_REASON_"+string(draining.Reason)]),
			Deadline: fromTime(draining.Deadline),
			Message:  draining.Message,
		}
	}
	return message
}

func toDraining(message *pb.Draining) *discovery.Draining {
	if message == nil {
		return nil
	}
	reason := strings.TrimPrefix(message.GetReason().String(), "DISENGAGE_REASON_")
	return &discovery.Draining{
		Reason: discovery.DisengageReason(reason), Deadline: toTime(message.GetDeadline()), Message: message.GetMessage(),
	}
}

func toCluster(message *pb.Cluster) discovery.Cluster {
	cluster := discovery.Cluster{
		Name:                  message.GetName(),
		UID:                   message.GetUid(),
		Endpoint:              message.GetEndpoint(),
		Organization:          message.GetOrganization(),
		Labels:                maps.Clone(message.GetLabels()),
		Annotations:           maps.Clone(message.GetAnnotations()),
		EngagedAt:             toTime(message.GetEngagedAt()),
		DeletionRequestedAt:   toTime(message.GetDeletionRequestedAt()),
		DeletionMessage:       message.GetDeletionMessage(),
		Suspended:             message.GetSuspended(),
		SourceResourceVersion: message.GetSourceResourceVersion(),
		Incarnation:           message.GetIncarnation(),
		Source:                message.GetSource(),
		Draining:              toDraining(message.GetDraining()),
	}
	for _, each := range message.GetSuspensions() {
		cluster.Suspensions = append(cluster.Suspensions, discovery.Suspension{
			Reason:             each.GetReason(),
			SuspendedAt:        toTime(each.GetSuspendedAt()),
			ReinstateAuthority: each.GetReinstateAuthority(),
			Message:            each.GetMessage(),
		})
	}
	if probed := message.GetConnectivity(); probed != nil {
		state := probed.GetState().String()[len("STATE_"):]
		cluster.Connectivity = discovery.Connectivity{
			State:   discovery.ConnectivityState(state),
			Since:   toTime(probed.GetSince()),
			Message: probed.GetMessage(),
		}
	}
	return cluster
}

func fromSource(source discovery.SourceStatus) *pb.SourceStatus {
	return &pb.SourceStatus{
		State:       pb.SourceStatus_State(pb.SourceStatus_State_value["STATE_"+string(source.State)]),
		Since:       fromTime(source.Since),
		Reason:      source.Reason,
		Message:     source.Message,
		LastContact: fromTime(source.LastContact),
		Name:        source.Name,
	}
}

// issue creates, records and returns the next kubeconfig of a cluster.
func (d *Daemon) issue(known *record) *pb.Kubeconfig {
	known.issued++
	cluster := toCluster(known.cluster)
	made := d.kubeconfig(cluster, known.issued)
	if made.Cluster == "" {
		made.Cluster = cluster.Name
	}
	if made.IssuedAt.IsZero() {
		made.IssuedAt = time.Now()
	}
	if made.RefreshAfter.IsZero() {
		made.RefreshAfter = made.IssuedAt.Add(refreshAfter)
	}
	if made.ExpiresAt.IsZero() {
		made.ExpiresAt = made.IssuedAt.Add(kubeconfigTTL)
	}
	known.kubeconfig = &pb.Kubeconfig{
		Cluster:      made.Cluster,
		Kubeconfig:   made.Content,
		ExpiresAt:    fromTime(made.ExpiresAt),
		RefreshAfter: fromTime(made.RefreshAfter),
		IssuedAt:     fromTime(made.IssuedAt),
	}
	return known.kubeconfig
}

// defaultKubeconfig returns a kubeconfig with the token "NAME-NUMBER".
func defaultKubeconfig(cluster discovery.Cluster, number int) discovery.Kubeconfig {
	return discovery.Kubeconfig{Content: kubeconfig(cluster, object{"token": fmt.Sprintf("%s-%d", cluster.Name, number)})}
}

// execKubeconfig returns a kubeconfig of the format EXEC, which runs the exec credential plugin milo-discovery.
func execKubeconfig(cluster discovery.Cluster) []byte {
	return kubeconfig(cluster, object{"exec": object{
		"apiVersion":      "client.authentication.k8s.io/v1",
		"command":         "milo-discovery",
		"args":            []string{"credential", "--cluster", cluster.Name},
		"interactiveMode": "Never",
	}})
}

type object map[string]any

func kubeconfig(cluster discovery.Cluster, user object) []byte {
	named := func(kind string, value object) []object { return []object{{"name": cluster.Name, kind: value}} }
	content, err := json.Marshal(object{
		"apiVersion":      "v1",
		"kind":            "Config",
		"current-context": cluster.Name,
		"contexts":        named("context", object{"cluster": cluster.Name, "user": cluster.Name}),
		"clusters":        named("cluster", object{"server": cluster.Endpoint}),
		"users":           named("user", user),
	})
	if err != nil {
		panic(err) // maps and strings always marshal
	}
	return content
}
