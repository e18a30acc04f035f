package discoverytest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "go.miloapis.com/discovery/v1"
)

const (
	defaultHeartbeat  = 30 * time.Second
	shortestHeartbeat = time.Second
	longestHeartbeat  = time.Hour
	chunk             = 500 // maximum number of clusters per batch of a snapshot, and default page size
)

type service struct {
	pb.UnimplementedDiscoveryServiceServer
	daemon *Daemon
}

func (s service) ListClusters(_ context.Context, request *pb.ListClustersRequest) (*pb.ListClustersResponse, error) {
	d := s.daemon
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if err := d.failure("ListClusters"); err != nil {
		return nil, err
	}
	if !d.synced {
		return nil, errNotSynced
	}
	covers, err := filter(request.GetFilter())
	if err != nil {
		return nil, err
	}
	var clusters []*pb.Cluster
	for _, each := range d.fleet() {
		if covers(each.cluster) && !slices.Contains(d.pending, each.cluster.GetSource()) {
			clusters = append(clusters, each.cluster)
		}
	}
	from, err := strconv.Atoi(cmp.Or(request.GetPageToken(), "0"))
	if err != nil || from < 0 || from > len(clusters) {
		return nil, Error(codes.InvalidArgument, "INVALID_REQUEST", "page_token: not a token of this listing")
	}
	response := &pb.ListClustersResponse{
		Revision:  d.revision(len(d.log)),
		TotalSize: int32(len(clusters)),
		Source:    d.source,

		PendingSources: d.pending,
	}
	size := cmp.Or(int(request.GetPageSize()), chunk)
	if until := from + size; until < len(clusters) {
		response.NextPageToken = strconv.Itoa(until)
	}
	response.Clusters = clusters[from:min(from+size, len(clusters))]
	return response, nil
}

func (s service) GetCluster(_ context.Context, request *pb.GetClusterRequest) (*pb.GetClusterResponse, error) {
	d := s.daemon
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if err := d.failure("GetCluster"); err != nil {
		return nil, err
	}
	known := d.records[request.GetName()]
	if known == nil {
		return nil, notFound(request.GetName())
	}
	return &pb.GetClusterResponse{
		Cluster: known.cluster,
		Engagement: &pb.Engagement{
			Engaged: known.engaged, Reason: known.reason, Since: known.since,
			AssignedElsewhere: known.reason == pb.Engagement_REASON_UNASSIGNED,
		},
		Transitions: slices.Clone(known.transitions),
		Source:      d.source,
	}, nil
}

func (s service) IssueKubeconfig(
	_ context.Context, request *pb.IssueKubeconfigRequest,
) (*pb.IssueKubeconfigResponse, error) {
	d := s.daemon
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if err := d.failure("IssueKubeconfig"); err != nil {
		return nil, err
	}
	if !d.synced {
		return nil, errNotSynced
	}
	known := d.records[request.GetCluster()]
	if known == nil || !known.engaged {
		return nil, notFound(request.GetCluster())
	}
	wanted := request.GetIncarnation()
	if wanted != "" && wanted != known.cluster.GetIncarnation() {
		return nil, Error(codes.FailedPrecondition, "OTHER_INCARNATION",
			fmt.Sprintf("cluster %q has incarnation %q now", request.GetCluster(), known.cluster.GetIncarnation()))
	}
	if request.GetFormat() == pb.KubeconfigFormat_KUBECONFIG_FORMAT_EXEC {
		content := execKubeconfig(toCluster(known.cluster))
		return &pb.IssueKubeconfigResponse{Kubeconfig: &pb.Kubeconfig{
			Cluster: request.GetCluster(), Kubeconfig: content, IssuedAt: now(),
		}}, nil
	}
	issued := d.issue(known)
	return &pb.IssueKubeconfigResponse{Kubeconfig: issued}, nil
}

func (s service) ReleaseCluster(
	_ context.Context, request *pb.ReleaseClusterRequest,
) (*pb.ReleaseClusterResponse, error) {
	d := s.daemon
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if err := d.failure("ReleaseCluster"); err != nil {
		return nil, err
	}
	known := d.records[request.GetCluster()]
	switch {
	case known == nil:
		return nil, notFound(request.GetCluster())
	case request.GetIncarnation() != known.cluster.GetIncarnation():
		return nil, Error(codes.FailedPrecondition, "OTHER_INCARNATION",
			fmt.Sprintf("cluster %q has incarnation %q now", request.GetCluster(), known.cluster.GetIncarnation()))
	case !known.engaged:
		return &pb.ReleaseClusterResponse{}, nil
	case known.cluster.GetDraining() == nil:
		return nil, Error(codes.FailedPrecondition, "NOT_DRAINING",
			fmt.Sprintf("cluster %q is not draining", request.GetCluster()))
	}
	known.released[request.GetSubscriber()] = true
	for each := range d.streams {
		awaited := each.request.GetConfirmReleases() && each.covers(known.cluster)
		if awaited && !known.released[each.request.GetSubscriber()] {
			return &pb.ReleaseClusterResponse{}, nil
		}
	}
	changes := &Changes{daemon: d}
	reason := toDraining(known.cluster.GetDraining()).Reason
	changes.Disengage(request.GetCluster(), reason)
	d.log = append(d.log, entry{changes: changes.collected})
	d.notify()
	return &pb.ReleaseClusterResponse{}, nil
}

func (s service) EndSubscription(
	_ context.Context, request *pb.EndSubscriptionRequest,
) (*pb.EndSubscriptionResponse, error) {
	d := s.daemon
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if err := d.failure("EndSubscription"); err != nil {
		return nil, err
	}
	d.ended = append(d.ended, request.GetSubscriber())
	return &pb.EndSubscriptionResponse{}, nil
}

func (s service) RenewOwnership(
	_ context.Context, request *pb.RenewOwnershipRequest,
) (*pb.RenewOwnershipResponse, error) {
	d := s.daemon
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.renewals++
	if err := d.failure("RenewOwnership"); err != nil {
		return nil, err
	}
	response := &pb.RenewOwnershipResponse{Sharded: d.sharded}
	if d.ownedFor > 0 && (request.GetSubscriber() == "" || d.hasStream(request.GetSubscriber())) {
		response.ValidFor = durationpb.New(d.ownedFor)
	}
	return response, nil
}

func (s service) GetServerInfo(context.Context, *pb.GetServerInfoRequest) (*pb.GetServerInfoResponse, error) {
	d := s.daemon
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if err := d.failure("GetServerInfo"); err != nil {
		return nil, err
	}
	engaged := len(d.fleet())
	var sharding *pb.Sharding
	if d.sharded {
		sharding = &pb.Sharding{Group: name, Member: d.member, ValidFor: durationpb.New(d.ownedFor)}
	}
	return &pb.GetServerInfoResponse{
		Sharding:    sharding,
		Version:     name,
		Mode:        "project",
		Incarnation: strconv.Itoa(d.starts),
		StartedAt:   timestamppb.New(d.startedAt),
		Source:      d.source,
		Synced:      d.synced,
		Counts: &pb.FleetCounts{
			Engaged:     int32(engaged),
			NotReady:    int32(len(d.records) - engaged),
			Subscribers: int32(len(d.streams)),
		},
		CredentialIssuers: []*pb.CredentialIssuer{{Name: name, Type: "token-request", Healthy: true}},
		Limits: &pb.Limits{
			DefaultHeartbeatInterval: durationpb.New(defaultHeartbeat),
			MaxKubeconfigTtl:         durationpb.New(kubeconfigTTL),
			MaxPageSize:              chunk,
		},
	}, nil
}

func (s service) WatchClusters(
	request *pb.WatchClustersRequest, sender grpc.ServerStreamingServer[pb.WatchClustersResponse],
) error {
	d := s.daemon
	matches, err := filter(request.GetFilter())
	if err != nil {
		return err
	}
	covers := func(cluster *pb.Cluster) bool {
		return matches(cluster) && (cluster.GetDraining() == nil || request.GetConfirmReleases())
	}
	stream := &stream{request: request, covers: covers}
	d.mutex.Lock()
	if err := d.failure("WatchClusters"); err != nil {
		d.mutex.Unlock()
		return err
	}
	stream.open(d)
	d.notify()
	d.mutex.Unlock()
	defer func() {
		d.mutex.Lock()
		defer d.mutex.Unlock()
		delete(d.streams, stream)
		d.notify()
	}()
	interval := defaultHeartbeat
	if asked := request.GetHeartbeatInterval(); asked != nil {
		interval = min(max(asked.AsDuration(), shortestHeartbeat), longestHeartbeat)
	}
	heartbeat := time.NewTicker(interval)
	defer heartbeat.Stop()
	for {
		d.mutex.Lock()
		batches, err := stream.next(d)
		changed := d.changed
		d.mutex.Unlock()
		if err != nil {
			return err
		}
		for _, batch := range batches {
			if err := sender.Send(batch); err != nil {
				return err
			}
			heartbeat.Reset(interval)
		}
		select {
		case <-sender.Context().Done():
			return sender.Context().Err()
		case <-changed:
		case <-heartbeat.C:
			d.mutex.Lock()
			stream.beat = true
			d.mutex.Unlock()
		}
	}
}

// stream is one open WatchClusters call. It is guarded by the mutex of the daemon.
// hasStream reports whether a stream of this subscriber is open. Call it with the mutex held.
func (d *Daemon) hasStream(subscriber string) bool {
	for s := range d.streams {
		if s.request.GetConfirmReleases() && s.request.GetSubscriber() == subscriber {
			return true
		}
	}
	return false
}

type stream struct {
	request *pb.WatchClustersRequest
	covers  func(*pb.Cluster) bool

	last     string // revision of the last batch
	position int    // position in the log
	started  bool   // a batch was sent
	whole    bool   // the complete snapshot was sent, or the stream was resumed
	beat     bool   // a heartbeat is due
	resets   int    // number of resets of the daemon that this stream has handled
	breaks   int
}

func (s *stream) open(d *Daemon) {
	d.streams[s] = struct{}{}
	d.requests = append(d.requests, s.request)
	s.resets, s.breaks = d.resets, d.breaks
	start, position, _ := strings.Cut(s.request.GetResumeRevision(), ":")
	at, err := strconv.Atoi(position)
	if d.synced && err == nil && start == strconv.Itoa(d.starts) && at <= len(d.log) {
		s.last, s.position, s.whole = s.request.GetResumeRevision(), at, true
	}
}

// isCurrent reports whether everything was sent to the stream.
func (s *stream) isCurrent(d *Daemon) bool {
	return s.started && s.breaks == d.breaks &&
		(!d.synced || s.whole && s.resets == d.resets && s.position == len(d.log))
}

// next returns the batches that are due.
func (s *stream) next(d *Daemon) ([]*pb.WatchClustersResponse, error) {
	switch {
	case s.breaks != d.breaks:
		return nil, d.breakError
	case d.silent:
		return nil, nil
	case !s.whole && !d.synced:
		return s.heartbeat(d, ""), nil
	case !s.whole || s.resets != d.resets:
		return s.snapshot(d), nil
	case s.position == len(d.log):
		return s.heartbeat(d, d.revision(s.position)), nil
	}
	var batches []*pb.WatchClustersResponse
	for ; s.position < len(d.log); s.position++ {
		each := d.log[s.position]
		batch := &pb.WatchClustersResponse{Source: each.source, Synced: true}
		for _, change := range each.changes {
			if event := s.filtered(d, change); event != nil {
				batch.Events = append(batch.Events, event)
			}
		}
		batches = append(batches, s.follow(d, batch, d.revision(s.position+1)))
	}
	d.notify()
	return batches, nil
}

// heartbeat returns a heartbeat if one is due, or if the stream has no batch yet.
func (s *stream) heartbeat(d *Daemon, revision string) []*pb.WatchClustersResponse {
	if s.started && !s.beat {
		return nil
	}
	s.beat = false
	batch := &pb.WatchClustersResponse{Source: d.source, Synced: s.whole}
	return []*pb.WatchClustersResponse{s.follow(d, batch, revision)}
}

// follow sets the revisions of a batch, so that it is the next batch of the stream.
func (s *stream) follow(d *Daemon, batch *pb.WatchClustersResponse, revision string) *pb.WatchClustersResponse {
	if !s.started {
		s.started = true
		batch.Source = d.source
		d.notify()
	}
	batch.Sharded = d.sharded && batch.Source != nil
	batch.PreviousRevision, batch.Revision = s.last, revision
	s.last = revision
	return batch
}

func (s *stream) snapshot(d *Daemon) []*pb.WatchClustersResponse {
	s.last, s.resets, s.position, s.whole = "", d.resets, len(d.log), true
	var events []*pb.ClusterEvent
	for _, each := range d.fleet() {
		if s.covers(each.cluster) && !slices.Contains(d.pending, each.cluster.GetSource()) {
			events = append(events, s.engaged(d, each.cluster))
		}
	}
	parts := slices.Collect(slices.Chunk(events, chunk))
	if len(parts) == 0 {
		parts = [][]*pb.ClusterEvent{nil}
	}
	batches := make([]*pb.WatchClustersResponse, len(parts))
	for i, part := range parts {
		batch := &pb.WatchClustersResponse{Events: part, Reset_: i == 0, Synced: i == len(parts)-1}
		revision := d.revision(s.position)
		if batch.Synced {
			batch.PendingSources = d.pending
		} else {
			revision = fmt.Sprintf("%s/%d", revision, i+1) // streams cannot be resumed from this revision
		}
		batches[i] = s.follow(d, batch, revision)
	}
	d.notify()
	return batches
}

// filtered returns the event that this stream receives for a change, or nil if it receives none.
func (s *stream) filtered(d *Daemon, change change) *pb.ClusterEvent {
	before := change.before != nil && s.covers(change.before)
	after := change.after != nil && s.covers(change.after)
	switch {
	case !before && !after:
		return nil
	case !before:
		return s.engaged(d, change.after)
	case !after && change.after != nil && change.after.GetDraining() != nil && !s.request.GetConfirmReleases():
		return &pb.ClusterEvent{
			Type:    pb.ClusterEvent_TYPE_DISENGAGED,
			Cluster: change.before,
			Reason:  change.after.GetDraining().GetReason(),
		}
	case !after && change.after != nil:
		return &pb.ClusterEvent{
			Type:    pb.ClusterEvent_TYPE_DISENGAGED,
			Cluster: change.after,
			Reason:  pb.DisengageReason_DISENGAGE_REASON_LABELS_CHANGED,
		}
	case change.event.GetKubeconfig() != nil && !s.request.GetIncludeKubeconfigs():
		return nil
	}
	return change.event
}

// engaged returns an ENGAGED event, with a kubeconfig if the stream includes them and the cluster is still engaged with
// that incarnation.
func (s *stream) engaged(d *Daemon, cluster *pb.Cluster) *pb.ClusterEvent {
	event := &pb.ClusterEvent{Type: pb.ClusterEvent_TYPE_ENGAGED, Cluster: cluster}
	known := d.records[cluster.GetName()]
	if s.request.GetIncludeKubeconfigs() && known.engaged && known.cluster.GetIncarnation() == cluster.GetIncarnation() {
		if known.kubeconfig == nil {
			d.issue(known)
		}
		event.Kubeconfig = known.kubeconfig
	}
	return event
}

func (d *Daemon) revision(position int) string { return fmt.Sprintf("%d:%d", d.starts, position) }

// failure returns the error that the test set for calls of a method, or nil.
func (d *Daemon) failure(method string) error { return d.failures[method] }

var errNotSynced = Error(codes.Unavailable, "NOT_SYNCED", "the daemon has no complete view yet")

func notFound(name string) error {
	return Error(codes.NotFound, "CLUSTER_NOT_FOUND", fmt.Sprintf("no cluster %q is engaged", name))
}
