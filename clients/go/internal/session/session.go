// Package session interprets the batches of a WatchClusters stream, without I/O.
//
// A Session outlives connections and daemons. It holds the view (the clusters that its user was notified of) and the
// resume revision. It applies batches, and returns the changes for its user: Engaged and Disengaged alternate for each
// cluster, whatever happens to the connection. The rules:
//
//   - A snapshot takes effect when it is complete. No change is reported before synced, and an incomplete snapshot is
//     dropped.
//   - A snapshot is reported as its differences from the view. A cluster with the same name and UID is the same
//     cluster: a new incarnation alone means that another daemon engaged it, and work on it continues. But a cluster
//     that was draining and no longer is was disengaged and engaged again.
//   - A batch is applied completely or not at all, and only then does its revision become the resume revision.
//   - Clusters of pending sources, which the daemon has not listed completely yet, are kept even if a snapshot lacks them.
//
// The other clients implement the same rules; the cases of clients/testdata/session_cases.json test all of them.
package session

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "go.miloapis.com/discovery/v1"
)

// ErrBroken is returned when a stream violated the protocol: a batch is missing or contradicts earlier ones.
// Open another stream to continue.
var ErrBroken = errors.New("discovery stream is broken")

const (
	// MissingAfterReconnect is the message of a disengagement because a snapshot lacks the cluster.
	MissingAfterReconnect = "it is missing from the daemon's latest snapshot"
	// OwnershipNotRenewed is the message of a disengagement by LoseOwnership.
	OwnershipNotRenewed = "the daemon did not confirm in time that it still owns the cluster"
)

// longestRevision is the length up to which revisions are resumed from. A daemon that refuses long requests would refuse
// a longer one again and again.
const longestRevision = 16 << 10

// Kind is the type of a Change.
type Kind int

// The kinds of changes.
const (
	Engaged Kind = iota + 1
	Updated
	Disengaged
	Kubeconfig
	// Refreshed means that only fields that the daemon assigns changed, such as the incarnation.
	Refreshed
)

func (k Kind) String() string {
	return [...]string{"UNSPECIFIED", "ENGAGED", "UPDATED", "DISENGAGED", "KUBECONFIG", "REFRESHED"}[k]
}

// Change is one change to one cluster, for the user of the session.
type Change struct {
	Kind       Kind
	Cluster    *pb.Cluster
	Reason     pb.DisengageReason
	Message    string
	Kubeconfig *pb.Kubeconfig
}

// Result is the outcome of a batch for the user of the session.
type Result struct {
	Changes []Change
	// Completed is set if the batch completed a snapshot: after these changes, the view is complete.
	Completed bool
}

// Known is a cluster of the view, with its kubeconfig if there is one.
type Known struct {
	Cluster    *pb.Cluster
	Kubeconfig *pb.Kubeconfig

	order uint64 // by first arrival, so that changes are reported in a stable order
}

type phase int

const (
	closed    phase = iota // no stream is open
	opened                 // a stream was requested; no batch has arrived
	waiting                // the daemon has no complete view itself and only sends heartbeats
	replacing              // a snapshot is arriving
	following              // the view is complete; changes to it arrive
)

// Session is the view, the resume revision, and the phase of the current stream. Its zero value is a session with
// an empty view. It is not safe for concurrent use.
type Session struct {
	phase    phase
	last     string // revision of the last batch of this stream, or the resume revision
	view     map[string]Known
	snapshot map[string]Known
	arrivals uint64

	revision string
	synced   bool
	source   *pb.SourceStatus
	pending  []string
}

// Revision returns the revision from which the next stream resumes; empty to start over.
func (s *Session) Revision() string { return s.revision }

// Synced reports whether the view was complete, and has not been emptied since. It stays true when a stream ends.
func (s *Session) Synced() bool { return s.synced }

// Source returns the last received status of the daemon's view of Milo, or nil.
func (s *Session) Source() *pb.SourceStatus { return s.source }

// PendingSources returns the sources of which the daemon has no complete list yet. Their clusters are kept.
func (s *Session) PendingSources() []string { return s.pending }

// Len returns the number of clusters in the view.
func (s *Session) Len() int { return len(s.view) }

// Open begins another stream and returns the revision to resume from. An incomplete snapshot of the
// previous stream is dropped.
func (s *Session) Open() string {
	if len(s.revision) > longestRevision {
		s.revision = ""
	}
	s.phase, s.last, s.snapshot = opened, s.revision, nil
	return s.revision
}

// Receive applies a batch. If the batch contradicts earlier ones, none of it is applied, the session accepts no further
// batches of this stream, and the error is ErrBroken.
func (s *Session) Receive(batch *pb.WatchClustersResponse) (Result, error) {
	before := s.phase
	s.phase = closed // stays if the batch is invalid
	var result Result
	var err error
	if batch.GetReset_() {
		// The stream starts over, so nothing before this batch can be missing.
		s.snapshot = map[string]Known{}
		result = s.gather(batch)
	} else {
		result, err = s.advance(before, batch)
	}
	if err != nil {
		return Result{}, err
	}
	s.last = batch.GetRevision()
	if batch.GetSource() != nil {
		s.source = batch.GetSource()
	}
	if batch.GetSynced() {
		s.pending = batch.GetPendingSources()
	}
	return result, nil
}

// LoseOwnership empties the view, because another daemon may have engaged its clusters, and returns their
// disengagements. The session accepts no further batches of this stream, and the next one begins with a snapshot.
func (s *Session) LoseOwnership() []Change {
	lost := make([]Change, 0, len(s.view))
	for _, name := range byArrival(s.view) {
		lost = append(lost, Change{
			Kind:    Disengaged,
			Cluster: s.view[name].Cluster,
			Reason:  pb.DisengageReason_DISENGAGE_REASON_OWNERSHIP_LOST,
			Message: OwnershipNotRenewed,
		})
	}
	s.phase, s.last, s.view, s.snapshot, s.revision, s.synced = closed, "", nil, nil, "", false
	return lost
}

func (s *Session) advance(before phase, batch *pb.WatchClustersResponse) (Result, error) {
	switch {
	case before == closed:
		return Result{}, fmt.Errorf("%w: a batch arrived on a stream that isn't open", ErrBroken)
	case before == opened && batch.GetSynced() && s.last == "":
		return Result{}, fmt.Errorf("%w: a new stream began without a snapshot", ErrBroken)
	case before == opened && !batch.GetSynced():
		s.last = "" // the daemon does not resume, so its heartbeats have no previous revision
		return Result{}, s.wait(batch)
	case before == waiting:
		return Result{}, s.wait(batch)
	}
	if err := s.continues(batch); err != nil {
		return Result{}, err
	}
	if before == replacing {
		return s.gather(batch), nil
	}
	return s.follow(batch)
}

func (s *Session) continues(batch *pb.WatchClustersResponse) error {
	if batch.GetPreviousRevision() != s.last {
		return fmt.Errorf("%w: a batch is missing: expected one after '%s', got one after '%s'",
			ErrBroken, s.last, batch.GetPreviousRevision())
	}
	return nil
}

func (s *Session) wait(batch *pb.WatchClustersResponse) error {
	if err := s.continues(batch); err != nil {
		return err
	}
	if len(batch.GetEvents()) > 0 || batch.GetSynced() {
		return s.contradiction("events or `synced` arrived before the snapshot")
	}
	s.phase = waiting
	return nil
}

// contradiction drops the resume revision, since only a snapshot can resolve the contradiction, and returns the error.
func (s *Session) contradiction(what string) error {
	s.revision = ""
	return fmt.Errorf("%w: %s", ErrBroken, what)
}

func (s *Session) gather(batch *pb.WatchClustersResponse) Result {
	for _, event := range batch.GetEvents() {
		name := event.GetCluster().GetName()
		switch event.GetType() {
		case pb.ClusterEvent_TYPE_ENGAGED, pb.ClusterEvent_TYPE_UPDATED, pb.ClusterEvent_TYPE_KUBECONFIG:
			s.snapshot[name] = s.merge(event, s.snapshot[name])
		case pb.ClusterEvent_TYPE_DISENGAGED:
			delete(s.snapshot, name)
		default: // an event type of a newer daemon
		}
	}
	if !batch.GetSynced() {
		s.phase = replacing
		return Result{}
	}
	for name, known := range s.view {
		if _, ok := s.snapshot[name]; !ok && slices.Contains(batch.GetPendingSources(), known.Cluster.GetSource()) {
			s.snapshot[name] = known
		}
	}
	changes := s.differences(s.snapshot)
	s.view, s.snapshot = s.snapshot, nil
	s.phase, s.revision, s.synced = following, batch.GetRevision(), true
	return Result{Changes: changes, Completed: true}
}

func (s *Session) differences(snapshot map[string]Known) (changes []Change) {
	for _, name := range byArrival(s.view) {
		if _, ok := snapshot[name]; !ok {
			missing := Change{Kind: Disengaged, Cluster: s.view[name].Cluster, Message: MissingAfterReconnect}
			changes = append(changes, missing)
		}
	}
	for _, name := range byArrival(snapshot) {
		now := snapshot[name]
		before, ok := s.view[name]
		switch {
		case !ok:
			changes = append(changes, engaged(now))
			continue
		case before.Cluster.GetUid() != now.Cluster.GetUid():
			replaced := pb.DisengageReason_DISENGAGE_REASON_REPLACED
			changes = append(changes,
				Change{Kind: Disengaged, Cluster: before.Cluster, Reason: replaced},
				engaged(now))
			continue
		case before.Cluster.GetDraining() != nil && now.Cluster.GetDraining() == nil:
			drained := before.Cluster.GetDraining().GetReason()
			changes = append(changes,
				Change{Kind: Disengaged, Cluster: before.Cluster, Reason: drained},
				engaged(now))
			continue
		case !visiblyEqual(before.Cluster, now.Cluster):
			changes = append(changes, Change{Kind: Updated, Cluster: now.Cluster})
		case !sameBookkeeping(before.Cluster, now.Cluster):
			changes = append(changes, Change{Kind: Refreshed, Cluster: now.Cluster})
		}
		if now.Kubeconfig != nil && !proto.Equal(before.Kubeconfig, now.Kubeconfig) {
			changes = append(changes, Change{Kind: Kubeconfig, Cluster: now.Cluster, Kubeconfig: now.Kubeconfig})
		}
	}
	return changes
}

func (s *Session) follow(batch *pb.WatchClustersResponse) (Result, error) {
	if !batch.GetSynced() {
		return Result{}, s.contradiction("`synced` became false without a reset")
	}
	pending := map[string]*Known{} // nil: disengaged
	var changes []Change
	for _, event := range batch.GetEvents() {
		kind, ok := kinds[event.GetType()]
		if !ok {
			continue // an event type of a newer daemon
		}
		name := event.GetCluster().GetName()
		before, isPending := pending[name]
		if !isPending {
			if known, ok := s.view[name]; ok {
				before = &known
			}
		}
		if (before == nil) != (kind == Engaged) {
			state := "engaged"
			if before == nil {
				state = "not engaged"
			}
			return Result{}, s.contradiction(fmt.Sprintf("%s for cluster '%s', which is %s", kind, name, state))
		}
		if before == nil {
			before = &Known{}
		}
		after := s.merge(event, *before)
		pending[name] = &after
		if kind == Disengaged {
			pending[name] = nil
		}
		changes = append(changes, Change{
			Kind:       kind,
			Cluster:    after.Cluster,
			Reason:     event.GetReason(),
			Message:    event.GetMessage(),
			Kubeconfig: event.GetKubeconfig(),
		})
	}
	for name, known := range pending {
		if known == nil {
			delete(s.view, name)
		} else {
			s.view[name] = *known
		}
	}
	s.phase, s.revision = following, batch.GetRevision()
	return Result{Changes: changes}, nil
}

var kinds = map[pb.ClusterEvent_Type]Kind{
	pb.ClusterEvent_TYPE_ENGAGED:    Engaged,
	pb.ClusterEvent_TYPE_UPDATED:    Updated,
	pb.ClusterEvent_TYPE_DISENGAGED: Disengaged,
	pb.ClusterEvent_TYPE_KUBECONFIG: Kubeconfig,
}

// merge returns the state of a cluster after an event. An event without a kubeconfig keeps the previous one.
func (s *Session) merge(event *pb.ClusterEvent, before Known) Known {
	after := Known{Cluster: event.GetCluster(), Kubeconfig: event.GetKubeconfig(), order: before.order}
	if after.Cluster == nil {
		after.Cluster = &pb.Cluster{}
	}
	if after.Kubeconfig == nil {
		after.Kubeconfig = before.Kubeconfig
	}
	if after.order == 0 {
		s.arrivals++
		after.order = s.arrivals
	}
	return after
}

func engaged(known Known) Change {
	return Change{Kind: Engaged, Cluster: known.Cluster, Kubeconfig: known.Kubeconfig}
}

func byArrival(clusters map[string]Known) []string {
	names := slices.Collect(maps.Keys(clusters))
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(clusters[a].order, clusters[b].order) })
	return names
}

// visiblyEqual compares the fields that describe the cluster itself. A difference is an update.
func visiblyEqual(a, b *pb.Cluster) bool {
	return a.GetName() == b.GetName() &&
		a.GetUid() == b.GetUid() &&
		a.GetEndpoint() == b.GetEndpoint() &&
		a.GetOrganization() == b.GetOrganization() &&
		maps.Equal(a.GetLabels(), b.GetLabels()) &&
		maps.Equal(a.GetAnnotations(), b.GetAnnotations()) &&
		sameTime(a.GetDeletionRequestedAt(), b.GetDeletionRequestedAt()) &&
		a.GetDeletionMessage() == b.GetDeletionMessage() &&
		a.GetSuspended() == b.GetSuspended() &&
		a.GetConnectivity().GetState() == b.GetConnectivity().GetState() &&
		a.GetConnectivity().GetMessage() == b.GetConnectivity().GetMessage() &&
		proto.Equal(a.GetDraining(), b.GetDraining()) &&
		a.GetSource() == b.GetSource() &&
		slices.EqualFunc(a.GetSuspensions(), b.GetSuspensions(), func(x, y *pb.Suspension) bool { return proto.Equal(x, y) })
}

// sameBookkeeping compares the fields that the daemon assigns: when and under which incarnation it engaged the cluster,
// since when its connectivity has its state, and the resourceVersion of the source object.
func sameBookkeeping(a, b *pb.Cluster) bool {
	return sameTime(a.GetEngagedAt(), b.GetEngagedAt()) &&
		sameTime(a.GetConnectivity().GetSince(), b.GetConnectivity().GetSince()) &&
		a.GetSourceResourceVersion() == b.GetSourceResourceVersion() &&
		a.GetIncarnation() == b.GetIncarnation()
}

func sameTime(a, b *timestamppb.Timestamp) bool {
	return (a == nil) == (b == nil) && a.GetSeconds() == b.GetSeconds() && a.GetNanos() == b.GetNanos()
}
