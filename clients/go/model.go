package discovery

import (
	"fmt"
	"log/slog"
	"time"
)

// The types of this file mirror the messages of milo.discovery.v1. An enum value that is not set, or that this client is
// too old to know, is the zero value of its type.

// EventType is the type of a change to a cluster.
type EventType string

// The types of events.
const (
	// EventEngaged: the cluster is ready. Start working on it.
	EventEngaged EventType = "ENGAGED"
	// EventUpdated: a field of the cluster changed. It is the same cluster: keep caches and connections.
	EventUpdated EventType = "UPDATED"
	// EventDisengaged: stop working on the cluster. Event.Reason says why.
	EventDisengaged EventType = "DISENGAGED"
	// EventKubeconfig: a new kubeconfig replaces the one before, which stays valid for a while. Nothing else changed.
	EventKubeconfig EventType = "KUBECONFIG"
	// EventRefreshed: only fields that the daemon assigns changed, such as the incarnation. The client reports it after
	// a restart of the daemon. Ignore it, unless you store Cluster.Incarnation.
	EventRefreshed EventType = "REFRESHED"
)

// DisengageReason is why a cluster was disengaged.
type DisengageReason string

// The reasons of disengagements.
const (
	// ReasonUnspecified: not known. The cluster was missing when the connection to the daemon was restored. Do not treat
	// it as ReasonDeleted.
	ReasonUnspecified DisengageReason = ""
	// ReasonDeleted: the project was deleted, and the API server confirmed it.
	ReasonDeleted DisengageReason = "DELETED"
	// ReasonNotReady: the condition that engages the cluster is no longer True.
	ReasonNotReady DisengageReason = "NOT_READY"
	// ReasonReplaced: the name belongs to another project now, whose EventEngaged follows if it is ready.
	ReasonReplaced DisengageReason = "REPLACED"
	// ReasonLabelsChanged: the cluster left the selector of the daemon or the filter of the watch.
	ReasonLabelsChanged DisengageReason = "LABELS_CHANGED"
	// ReasonUnreachable: the control plane was unreachable for longer than the daemon tolerates.
	ReasonUnreachable DisengageReason = "UNREACHABLE"
	// ReasonRevoked: the rights of the subscriber no longer cover the cluster.
	ReasonRevoked DisengageReason = "REVOKED"
	// ReasonMoved: another daemon of the shard group owns the cluster now. Only the work in this process ends, not
	// the cluster: clean up nothing in it.
	ReasonMoved DisengageReason = "MOVED"
	// ReasonRemoved: the source of the daemon removed the cluster by its own rules.
	ReasonRemoved DisengageReason = "REMOVED"
	// ReasonOwnershipLost: the daemon cannot renew its ownership, or did not confirm it in time, and another member of its
	// shard group may engage the cluster. As for ReasonMoved, clean up nothing.
	ReasonOwnershipLost DisengageReason = "OWNERSHIP_LOST"
)

// Event is one change to one cluster. For each cluster there is EventEngaged first, then any number of others, then
// EventDisengaged.
type Event struct {
	Type EventType
	// Cluster is complete in every type of event; as last known for EventDisengaged.
	Cluster Cluster
	// Reason is set for EventDisengaged.
	Reason DisengageReason
	// Message is for people.
	Message string
	// Kubeconfig is set for EventKubeconfig, and for EventEngaged if one is available, where
	// WatchOptions.IncludeKubeconfigs is set. An engagement does not wait for a kubeconfig.
	Kubeconfig *Kubeconfig
}

// Cluster is an engaged project control plane.
type Cluster struct {
	// Name is the key of the cluster: the name of the project or, from a daemon with several sources, SOURCE#NAME.
	Name string
	// UID of the project.
	UID string
	// Endpoint of its API server: scheme, host, and path if there is one.
	Endpoint string
	// Organization that owns the project; empty if that is not known.
	Organization string
	Labels       map[string]string
	// Annotations that the daemon is configured to pass on.
	Annotations map[string]string
	EngagedAt   time.Time
	// DeletionRequestedAt is set once the deletion of the project was requested. Its control plane answers until the
	// finalizers are removed: finish the cleanup; the cluster is disengaged afterwards.
	DeletionRequestedAt time.Time
	// DeletionMessage describes what the deletion waits for.
	DeletionMessage string
	// Suspended projects serve reads and refuse writes. They stay engaged: keep what was created in them, and pause.
	Suspended bool
	// Suspensions are the reasons for the suspension. Empty if the source does not report them.
	Suspensions []Suspension
	// Connectivity is the result of the daemon's probes of the API server.
	Connectivity Connectivity
	// SourceResourceVersion is the resource version of the upstream object that the cluster was read from.
	SourceResourceVersion string
	// Incarnation is new each time that the daemon engages the cluster, and the same for all subscribers.
	Incarnation string
	// Source of the daemon that the cluster comes from, if the daemon has several.
	Source string
	// Draining is set once the cluster is about to be disengaged, in watches with WatchOptions.Subscriber: end the work
	// on it, and call [Client.Release]. Its credentials work until it is disengaged.
	Draining *Draining
}

// Suspension is a reason for which a cluster is suspended.
type Suspension struct {
	// Reason is its category, such as "Billing" or "Fraud".
	Reason      string
	SuspendedAt time.Time
	// ReinstateAuthority is who can reinstate the project: "Operator" or "Consumer".
	ReinstateAuthority string
	// Message is what the source says of the suspension as a whole.
	Message string
}

// Draining is the planned end of an engagement.
type Draining struct {
	// Reason that EventDisengaged will have.
	Reason DisengageReason
	// Deadline at which the cluster is disengaged, released or not.
	Deadline time.Time
	// Message is for people.
	Message string
}

// ConnectivityState is whether the daemon reaches the API server of a cluster.
type ConnectivityState string

// The states of connectivity.
const (
	// ConnectivityUnknown: not probed.
	ConnectivityUnknown     ConnectivityState = "UNKNOWN"
	ConnectivityReachable   ConnectivityState = "REACHABLE"
	ConnectivityUnreachable ConnectivityState = "UNREACHABLE"
)

// Connectivity is the result of the daemon's probes of a cluster's API server.
type Connectivity struct {
	State   ConnectivityState
	Since   time.Time
	Message string
}

// SourceState is the state of the daemon's view of Milo.
type SourceState string

// The states of a source.
const (
	// SourceStreaming: the view follows Milo as it changes.
	SourceStreaming SourceState = "STREAMING"
	// SourceCatchingUp: the daemon reads a complete list. What was known before is still valid.
	SourceCatchingUp SourceState = "CATCHING_UP"
	// SourceStale: the daemon cannot follow Milo at present. What was known may be out of date.
	SourceStale SourceState = "STALE"
)

// SourceStatus is how fresh the daemon's view of Milo is, which is independent of the connection to the daemon.
type SourceStatus struct {
	State SourceState
	// Since when the state holds.
	Since time.Time
	// Reason is one CamelCase word for programs, such as "Unauthorized". Empty while streaming.
	Reason string
	// Message is for people.
	Message string
	// LastContact is the time of Milo's last response.
	LastContact time.Time
	// Name of the source, in a daemon with several.
	Name string
}

// KubeconfigFormat is how a kubeconfig carries its credential.
type KubeconfigFormat string

// The formats of kubeconfigs.
const (
	// FormatEmbedded: the credential is embedded, and valid until it expires. The default.
	FormatEmbedded KubeconfigFormat = "EMBEDDED"
	// FormatExec: without a credential; an exec credential plugin requests one from the daemon each time.
	FormatExec KubeconfigFormat = "EXEC"
)

// Kubeconfig is a kubeconfig with its lifetime. Its content is secret: it is omitted when the value is formatted or
// logged; keep it in memory only.
type Kubeconfig struct {
	// Cluster is the name of the cluster.
	Cluster string
	// Content is a kubeconfig file.
	Content []byte
	// ExpiresAt is when its credential expires; zero for FormatExec, which has none.
	ExpiresAt time.Time
	// RefreshAfter is when to request the next one.
	RefreshAfter time.Time
	IssuedAt     time.Time
}

// String returns the cluster and the expiry, without the content.
func (k Kubeconfig) String() string {
	return fmt.Sprintf("kubeconfig of cluster %q, issued %s, expires %s",
		k.Cluster, formatTime(k.IssuedAt), formatTime(k.ExpiresAt))
}

// GoString is String, so that %#v omits the content as well.
func (k Kubeconfig) GoString() string { return k.String() }

// LogValue is String for log/slog.
func (k Kubeconfig) LogValue() slog.Value { return slog.StringValue(k.String()) }

func formatTime(at time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return at.Format(time.RFC3339)
}

// Filter selects clusters. All fields that are set must match; the zero value selects all clusters.
type Filter struct {
	// LabelSelector in Kubernetes syntax, such as "env in (prod, staging),tier!=silver".
	LabelSelector string
	// Names selects any of these clusters.
	Names []string
	// Organizations selects the clusters of any of these.
	Organizations []string
	// Sources selects the clusters of any of these sources of the daemon. An unknown source is an [ErrInvalidRequest].
	Sources []string
}

// Listing is the engaged clusters at one revision.
type Listing struct {
	// Clusters are ordered by name.
	Clusters []Cluster
	Revision string
	// Source is the state of the daemon's view of Milo; with several sources, the worst of their states.
	Source SourceStatus
	// Sources are the states of all sources that the filter covers, in a daemon with several.
	Sources []SourceStatus
	// PendingSources are those of which the daemon has no complete list yet: their clusters are missing.
	PendingSources []string
}

// EngagementReason is the reason for which a name is or is not engaged.
type EngagementReason string

// The reasons of an engagement or its absence.
const (
	EngagementEngaged  EngagementReason = "ENGAGED"
	EngagementNotReady EngagementReason = "NOT_READY"
	// EngagementOutsideSelector: the object exists, and the selector of the daemon does not cover it.
	EngagementOutsideSelector EngagementReason = "OUTSIDE_SELECTOR"
	// EngagementMalformed: the object cannot be used; Message says why.
	EngagementMalformed EngagementReason = "MALFORMED"
	EngagementDeleted   EngagementReason = "DELETED"
	// EngagementConfirmingDeletion: it is engaged, and the daemon confirms a deletion that was reported.
	EngagementConfirmingDeletion EngagementReason = "CONFIRMING_DELETION"
	EngagementUnreachable        EngagementReason = "UNREACHABLE"
	// EngagementDraining: it is engaged, and about to be disengaged. Cluster.Draining says why and when.
	EngagementDraining EngagementReason = "DRAINING"
	// EngagementRemoved: the source ended the engagement by its own rules; Message says by which.
	EngagementRemoved EngagementReason = "REMOVED"
	// EngagementUnassigned: it is ready, and another daemon of the shard group owns it, or has not released it yet.
	EngagementUnassigned EngagementReason = "UNASSIGNED"
	// EngagementRefused: it belongs to an organization other than that of the daemon's context, and the API server sent it
	// anyway.
	EngagementRefused EngagementReason = "REFUSED"
)

// Engagement is whether a name is engaged, and why.
type Engagement struct {
	Engaged bool
	Reason  EngagementReason
	Message string
	Since   time.Time
}

// Transition is an engagement or disengagement in the past.
type Transition struct {
	Type        EventType
	Reason      DisengageReason
	Message     string
	At          time.Time
	Incarnation string
}

// Report is what the daemon knows of one name.
type Report struct {
	// Cluster as engaged, or as last engaged; nil if it never was.
	Cluster    *Cluster
	Engagement Engagement
	// Transitions are the last few, oldest first.
	Transitions []Transition
	// PendingReleases are the subscribers that a draining cluster waits for, as far as the caller may see them.
	PendingReleases []PendingRelease
	// Source says how current the report is; its State is empty if the daemon does not send it.
	Source SourceStatus
}

// PendingRelease is a subscriber that has not released a draining cluster yet.
type PendingRelease struct {
	Subscriber string
	// Caller is the authenticated identity of the subscriber, if there is one.
	Caller    string
	Connected bool
	// Since when it is connected, or disconnected.
	Since time.Time
}

// ServerInfo describes the daemon.
type ServerInfo struct {
	// Version of the program.
	Version string
	// Mode is "project", "project-control-plane", "single", "declarative", that of an added package, or "sources" for a
	// daemon with several sources.
	Mode string
	// Incarnation is new with each start of the daemon.
	Incarnation string
	StartedAt   time.Time
	Source      SourceStatus
	// Synced is set once the daemon has read a complete list of its source.
	Synced bool
	Counts FleetCounts
	// CredentialIssuers of the kubeconfigs that the daemon issues; empty if it issues none.
	CredentialIssuers []CredentialIssuer
	Limits            Limits
	// Sources of clusters, in a daemon with several.
	Sources []Source
	// Sharding is nil for a daemon that shares the clusters with no other.
	Sharding *Sharding
	// Context of Milo that the only source watches: "root", "organization ORG" or "project PROJECT". Empty for kinds
	// that do not depend on it, and for callers that may not see all clusters.
	Context string
}

// Source is a configured source of clusters.
type Source struct {
	Name string
	// Kind is "project", "service-consumer", and so on.
	Kind   string
	Status SourceStatus
	// Synced is set once the daemon has read a complete list of the source.
	Synced bool
	// Counts of its clusters, without Subscribers.
	Counts FleetCounts
	// Context of Milo that it watches, as in ServerInfo.
	Context string
}

// Sharding describes the group of daemons that share the clusters, as this one sees it.
type Sharding struct {
	Group string
	// Member is the name of this daemon.
	Member string
	// View is the number of the set of members among which the clusters are distributed.
	View int64
	// Settled is set if all members have acknowledged the view, and none is joining or leaving.
	Settled bool
	// Members are set for callers that may see all clusters.
	Members []ShardMember
	// ValidFor is for how long the daemon's ownership of its clusters holds; zero while it owns none.
	ValidFor time.Duration
	// Problem is why the Leases of the group cannot be read or written; empty if they can.
	Problem string
	// Draining are the first 100 of this daemon's clusters that wait for subscribers to release them.
	Draining []string
}

// ShardMember is a daemon of a shard group.
type ShardMember struct {
	Name   string
	Weight float64
	InView bool
	// Alive is set while a process holds its Lease.
	Alive   bool
	Leaving bool
	// AcknowledgedView is the latest view for which it has released the clusters that it lost.
	AcknowledgedView int64
	// Clusters is the number of known clusters that the view assigns to it.
	Clusters int
}

// FleetCounts counts the clusters that the daemon knows, and its subscribers.
type FleetCounts struct {
	Engaged         int
	NotReady        int
	OutsideSelector int
	Malformed       int
	// Subscribers is the number of open watch streams.
	Subscribers int
	// Draining counts the engaged clusters that are about to be disengaged.
	Draining int
	// Unreachable counts the clusters that do not answer the daemon's probes.
	Unreachable int
	// Unassigned counts the clusters that are ready and owned by other members of the shard group, or by none.
	Unassigned int
	// Refused counts the objects of other organizations that the API server sent in the context of one.
	Refused int
}

// CredentialIssuer is a configured issuer of the credentials in kubeconfigs.
type CredentialIssuer struct {
	Name string
	// Type is "token-request", "exec", and so on.
	Type    string
	Healthy bool
	// Message describes the problem if it is not healthy.
	Message string
	// ExpiresAt is when its own credential expires, if it has one.
	ExpiresAt time.Time
	// FailingClusters counts engaged clusters that get no new credential because of a failure specific to the cluster,
	// by reason. Only callers that may see all clusters get it.
	FailingClusters map[string]uint32
}

// Limits are the limits of the daemon.
type Limits struct {
	DefaultHeartbeatInterval time.Duration
	StalledTimeout           time.Duration
	MaxKubeconfigTTL         time.Duration
	MaxPageSize              int
	MaxFilterBytes           int
}
