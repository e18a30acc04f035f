package discoverytest

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"go.miloapis.com/discovery"
	pb "go.miloapis.com/discovery/v1"
)

// Changes are changes to the fleet that are sent as one batch: see [Daemon.Batch].
type Changes struct {
	daemon    *Daemon
	collected []change
}

// change is one event, with the cluster before and after it, so that each stream can apply its filter.
type change struct {
	event         *pb.ClusterEvent
	before, after *pb.Cluster
}

// record is the daemon's state of one cluster.
type record struct {
	cluster     *pb.Cluster // the current or last state; never modified, only replaced
	engaged     bool
	engagements int
	projects    int // number of projects that have had this name
	issued      int
	kubeconfig  *pb.Kubeconfig // the newest kubeconfig of this engagement
	reason      pb.Engagement_Reason
	since       *timestamppb.Timestamp
	transitions []*pb.Transition
	released    map[string]bool // subscribers that have released this engagement
}

// Engage engages clusters. UID, Endpoint, Organization, EngagedAt and Incarnation have defaults. A name that was
// engaged before keeps its UID, unless it was disengaged as deleted or replaced.
func (c *Changes) Engage(clusters ...discovery.Cluster) {
	c.daemon.t.Helper()
	for _, cluster := range clusters {
		if cluster.Name == "" {
			c.daemon.t.Fatalf("discoverytest: the cluster has no Name")
		}
		known := c.daemon.records[cluster.Name]
		if known == nil {
			known = &record{projects: 1}
			c.daemon.records[cluster.Name] = known
		}
		if known.engaged {
			c.daemon.t.Fatalf("discoverytest: cluster %q is already engaged", cluster.Name)
		}
		known.engaged = true
		known.engagements++
		known.kubeconfig, known.released = nil, map[string]bool{}
		known.cluster = fromCluster(cluster)
		setDefault(&known.cluster.Uid, fmt.Sprintf("uid-%s-%d", cluster.Name, known.projects))
		setDefault(&known.cluster.Endpoint, fmt.Sprintf("https://milo.invalid/projects/%s/control-plane", cluster.Name))
		setDefault(&known.cluster.Organization, "acme")
		setDefault(&known.cluster.Incarnation, known.incarnation(c.daemon.starts))
		if known.cluster.EngagedAt == nil {
			known.cluster.EngagedAt = now()
		}
		known.explain(pb.Engagement_REASON_ENGAGED, &pb.Transition{Type: pb.ClusterEvent_TYPE_ENGAGED})
		event := &pb.ClusterEvent{Type: pb.ClusterEvent_TYPE_ENGAGED, Cluster: known.cluster}
		c.collected = append(c.collected, change{event: event, after: known.cluster})
	}
}

// Update changes an engaged cluster.
func (c *Changes) Update(name string, update func(*discovery.Cluster)) {
	c.daemon.t.Helper()
	known := c.daemon.mustBeEngaged(name)
	cluster := toCluster(known.cluster)
	update(&cluster)
	before := known.cluster
	known.cluster = fromCluster(cluster)
	event := &pb.ClusterEvent{Type: pb.ClusterEvent_TYPE_UPDATED, Cluster: known.cluster}
	c.collected = append(c.collected, change{event: event, before: before, after: known.cluster})
}

// Disengage disengages a cluster.
func (c *Changes) Disengage(name string, reason discovery.DisengageReason) {
	c.daemon.t.Helper()
	known := c.daemon.mustBeEngaged(name)
	number, ok := pb.DisengageReason_value["DISENGAGE_REASON_"+string(reason)]
	if !ok && reason != discovery.ReasonUnspecified {
		c.daemon.t.Fatalf("discoverytest: unknown disengage reason %q", reason)
	}
	known.engaged = false
	if reason == discovery.ReasonDeleted || reason == discovery.ReasonReplaced {
		known.projects++
	}
	converted := pb.DisengageReason(number)
	known.explain(absences[reason], &pb.Transition{Type: pb.ClusterEvent_TYPE_DISENGAGED, Reason: converted})
	event := &pb.ClusterEvent{Type: pb.ClusterEvent_TYPE_DISENGAGED, Cluster: known.cluster, Reason: converted}
	c.collected = append(c.collected, change{event: event, before: known.cluster})
}

// Drain begins a planned disengagement. Streams with confirm_releases receive the cluster as draining, and it is
// disengaged once the subscribers of all these streams have released it; use Disengage to simulate the deadline. Other
// streams receive DISENGAGED at once.
func (c *Changes) Drain(name string, reason discovery.DisengageReason) {
	c.daemon.t.Helper()
	c.Update(name, func(cluster *discovery.Cluster) {
		cluster.Draining = &discovery.Draining{Reason: reason, Deadline: time.Now().Add(time.Hour)}
	})
}

// Replace deletes a project and creates another one of the same name: the cluster is disengaged as replaced and engaged
// with another UID.
func (c *Changes) Replace(cluster discovery.Cluster) {
	c.daemon.t.Helper()
	c.Disengage(cluster.Name, discovery.ReasonReplaced)
	c.Engage(cluster)
}

// Rotate issues another kubeconfig for an engaged cluster, and sends it to the streams that include kubeconfigs.
func (c *Changes) Rotate(name string) {
	c.daemon.t.Helper()
	known := c.daemon.mustBeEngaged(name)
	event := &pb.ClusterEvent{
		Type:       pb.ClusterEvent_TYPE_KUBECONFIG,
		Cluster:    known.cluster,
		Kubeconfig: c.daemon.issue(known),
	}
	c.collected = append(c.collected, change{event: event, before: known.cluster, after: known.cluster})
}

// absences maps the reason of a disengagement to the reason why the cluster is not engaged afterwards.
var absences = map[discovery.DisengageReason]pb.Engagement_Reason{
	discovery.ReasonDeleted:       pb.Engagement_REASON_DELETED,
	discovery.ReasonReplaced:      pb.Engagement_REASON_DELETED,
	discovery.ReasonRemoved:       pb.Engagement_REASON_REMOVED,
	discovery.ReasonNotReady:      pb.Engagement_REASON_NOT_READY,
	discovery.ReasonUnreachable:   pb.Engagement_REASON_UNREACHABLE,
	discovery.ReasonLabelsChanged: pb.Engagement_REASON_OUTSIDE_SELECTOR,
	discovery.ReasonMoved:         pb.Engagement_REASON_UNASSIGNED,
}

// engageAgain engages a cluster with a new incarnation, after a restart of the daemon.
func (r *record) engageAgain(starts int) {
	r.engagements++
	r.cluster = proto.CloneOf(r.cluster)
	r.cluster.Incarnation = r.incarnation(starts)
	r.cluster.EngagedAt = now()
	r.kubeconfig, r.released = nil, map[string]bool{}
}

func (r *record) incarnation(starts int) string { return fmt.Sprintf("%d-%d", starts, r.engagements) }

func (r *record) explain(reason pb.Engagement_Reason, transition *pb.Transition) {
	transition.At, transition.Incarnation = now(), r.cluster.GetIncarnation()
	r.reason, r.since = reason, transition.At
	r.transitions = append(r.transitions, transition)
}

// mustBeEngaged returns the record of an engaged cluster, or fails the test.
func (d *Daemon) mustBeEngaged(name string) *record {
	d.t.Helper()
	known := d.records[name]
	if known == nil || !known.engaged {
		d.t.Fatalf("discoverytest: cluster %q is not engaged", name)
	}
	return known
}

// fleet returns the engaged clusters, ordered by name.
func (d *Daemon) fleet() []*record {
	var engaged []*record
	for _, name := range slices.Sorted(maps.Keys(d.records)) {
		if d.records[name].engaged {
			engaged = append(engaged, d.records[name])
		}
	}
	return engaged
}

func setDefault(field *string, value string) {
	if *field == "" {
		*field = value
	}
}
