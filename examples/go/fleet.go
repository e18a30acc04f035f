package main

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	pb "example.com/milo-discovery-subscriber/discoveryv1"
)

// Fleet is the fleet as this process knows it. Batches go in, and what is news comes out: no matter how often the
// connection or the daemon was lost on the way, a cluster is ENGAGED once and DISENGAGED once.
type Fleet struct {
	clusters map[string]*pb.Cluster
	snapshot map[string]*pb.Cluster // a complete view that is still coming in; nil without one
	revision string                 // where to resume
}

// Open begins a stream, and says where it is to resume: what an earlier one left half-told does not count.
func (f *Fleet) Open() string {
	f.snapshot = nil
	return f.revision
}

// Apply takes the next batch of the stream.
func (f *Fleet) Apply(batch *pb.WatchClustersResponse) (news []*pb.ClusterEvent) {
	if batch.Reset_ {
		f.snapshot = map[string]*pb.Cluster{}
	}
	known := &f.clusters
	if f.snapshot != nil {
		known = &f.snapshot
	} else {
		news = batch.Events
	}
	for _, event := range batch.Events {
		if event.Type == pb.ClusterEvent_TYPE_DISENGAGED {
			delete(*known, event.Cluster.Name)
		} else {
			(*known)[event.Cluster.Name] = event.Cluster
		}
	}
	if !batch.Synced {
		return nil
	}
	if f.snapshot != nil {
		news = differences(f.clusters, f.snapshot)
		f.clusters, f.snapshot = f.snapshot, nil
	}
	// The point to come back to is behind a whole batch, and never inside a snapshot.
	f.revision = batch.Revision
	return news
}

func differences(before, after map[string]*pb.Cluster) (news []*pb.ClusterEvent) {
	for _, name := range slices.Sorted(maps.Keys(before)) {
		old := before[name]
		gone := &pb.ClusterEvent{Type: pb.ClusterEvent_TYPE_DISENGAGED, Cluster: old}
		if cluster, ok := after[name]; !ok {
			gone.Message = "it was gone when the connection came back"
			news = append(news, gone)
		} else if cluster.Uid != old.Uid {
			gone.Reason = pb.DisengageReason_DISENGAGE_REASON_REPLACED
			news = append(news, gone)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		cluster := after[name]
		old, ok := before[name]
		if !ok || old.Uid != cluster.Uid {
			news = append(news, &pb.ClusterEvent{Type: pb.ClusterEvent_TYPE_ENGAGED, Cluster: cluster})
		} else if !proto.Equal(seen(old), seen(cluster)) {
			news = append(news, &pb.ClusterEvent{Type: pb.ClusterEvent_TYPE_UPDATED, Cluster: cluster})
		}
	}
	return news
}

// seen leaves out what a restarted daemon tells anew about a cluster that is the same as ever.
func seen(cluster *pb.Cluster) *pb.Cluster {
	same := proto.CloneOf(cluster)
	same.EngagedAt, same.Incarnation, same.SourceResourceVersion = nil, "", ""
	if same.Connectivity != nil {
		same.Connectivity.Since = nil
	}
	return same
}
