package discovery

import (
	"fmt"
	"log/slog"
	"time"
)

// The types of this file mirror the messages of milo.discovery.v1. An enum value that is not set or unknown to this
// client is the zero value of its type.

// EventType is the type of a change to a cluster.
type EventType string

// The types of events.
const (
	// EventEngaged means that the cluster is ready. Start working on it.
	EventEngaged EventType = "ENGAGED"
	// EventUpdated means that a field of the cluster changed. It is the same cluster: keep caches and connections.
	EventUpdated EventType = "UPDATED"
	// EventDisengaged means that you must stop working on the cluster. Event.Reason is the reason.
	EventDisengaged EventType = "DISENGAGED"
	// EventKubeconfig means that a new kubeconfig replaces the previous one, which stays valid for a while. Nothing else
	// changed.
	EventKubeconfig EventType = "KUBECONFIG"
	// EventRefreshed means that only fields that the daemon assigns changed, such as the incarnation. The client reports
	// it after a snapshot, such as that of a restarted daemon. Ignore it, unless you store Cluster.Incarnation.
	EventRefreshed EventType = "REFRESHED"
)

// DisengageReason is the reason why a cluster was disengaged.
type DisengageReason string

// The reasons of disengagements.
const (
	// ReasonUnspecified means that the reason is unknown: a snapshot, such as that of a restarted daemon, lacks the
	// cluster, or a newer daemon sent a reason that this client lacks. Do not treat it as ReasonDeleted.
	ReasonUnspecified DisengageReason = ""
	// ReasonDeleted means that the project was deleted, which the API server confirmed.
	ReasonDeleted DisengageReason = "DELETED"
	// ReasonNotReady means that the cluster's source no longer reports it as ready.
	ReasonNotReady DisengageReason = "NOT_READY"
	// ReasonReplaced means that another project has the name now. Its EventEngaged follows if it is ready.
	ReasonReplaced DisengageReason = "REPLACED"
	// ReasonLabelsChanged means that the daemon's selector or the watch's filter no longer matches the cluster.
	ReasonLabelsChanged DisengageReason = "LABELS_CHANGED"
	// ReasonUnreachable means that the control plane was unreachable for longer than the daemon is configured to tolerate.
	ReasonUnreachable DisengageReason = "UNREACHABLE"
	// ReasonRevoked means that the subscriber's rights no longer cover the cluster.
	ReasonRevoked DisengageReason = "REVOKED"
	// ReasonMoved means that another daemon of the shard group owns the cluster now. Stop the work of this process, but do
	// not clean up in the cluster.
	ReasonMoved DisengageReason = "MOVED"
	// ReasonRemoved means that the daemon's source removed the cluster by its own rules.
	ReasonRemoved DisengageReason = "REMOVED"
	// ReasonOwnershipLost means that the daemon cannot renew its ownership, or did not confirm it in time, and another
	// member of its shard group may engage the cluster. As with ReasonMoved, do not clean up in the cluster.
	ReasonOwnershipLost DisengageReason = "OWNERSHIP_LOST"
)

// Event is one change to one cluster. Each engagement begins with EventEngaged and ends with EventDisengaged.
type Event struct {
	Type EventType
	// Cluster is complete in every type of event. For EventDisengaged it is the last known state.
	Cluster Cluster
	// Reason is set for EventDisengaged.
	Reason DisengageReason
	// Message is human-readable.
	Message string
	// Kubeconfig is set, with WatchOptions.IncludeKubeconfigs, for EventKubeconfig, and for EventEngaged if a kubeconfig
	// is available. An engagement does not wait for a kubeconfig.
	Kubeconfig *Kubeconfig
}

// Cluster is an engaged project control plane.
type Cluster struct {
	// Name is the key of the cluster: the project's name or, from a daemon with several sources, SOURCE#NAME.
	Name string
	// UID is the UID of the project.
	UID string
	// Endpoint is the URL of its API server: scheme, host, and path if there is one.
	Endpoint string
	// Organization is the organization that owns the project; empty if unknown.
	Organization string
	Labels       map[string]string
	// Annotations are the annotations that the daemon is configured to include.
	Annotations map[string]string
	EngagedAt   time.Time
	// DeletionRequestedAt is set once the deletion of the project was requested. Its control plane is available until the
	// finalizers are removed: finish the cleanup before. The cluster is disengaged afterwards.
	DeletionRequestedAt time.Time
	// DeletionMessage describes what the deletion waits for.
	DeletionMessage string
	// Suspended is set for projects that refuse to create and to change objects, but serve reads and deletions. They stay
	// engaged: pause, and keep the objects that you created in them.
	Suspended bool
	// Suspensions are the reasons for the suspension. Empty if the source does not report them.
	Suspensions []Suspension
	// Connectivity is the result of the daemon's probes of the API server.
	Connectivity Connectivity
	// SourceResourceVersion is the resourceVersion of the source object that represents the cluster.
	SourceResourceVersion string
	// Incarnation is new each time that the daemon engages the cluster, and the same for all subscribers.
	Incarnation string
	// Source is the name of the cluster's source, if the daemon has several.
	Source string
	// Draining is set once the cluster is about to be disengaged, in reports and in watches with WatchOptions.Subscriber:
	// finish the work on it, and call [Client.Release]. Its credentials are renewed until it is disengaged.
	Draining *Draining
}

// Suspension is one suspension of a cluster. A cluster can have several.
type Suspension struct {
	// Reason is its category, such as "Billing" or "Fraud".
	Reason      string
	SuspendedAt time.Time
	// ReinstateAuthority is who can reinstate the project: "Operator" or "Consumer".
	ReinstateAuthority string
	// Message is the source's message about the suspension.
	Message string
}

// Draining describes a planned disengagement.
type Draining struct {
	// Reason is the reason that EventDisengaged will have.
	Reason DisengageReason
	// Deadline is when the cluster is disengaged, even if it was not released.
	Deadline time.Time
	// Message is human-readable.
	Message string
}

// ConnectivityState is whether a cluster's API server is reachable from the daemon.
type ConnectivityState string

// The states of connectivity.
const (
	// ConnectivityUnknown means that the API server was not probed, or only its host: see Message.
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
	// SourceStreaming means that the daemon receives changes as they happen.
	SourceStreaming SourceState = "STREAMING"
	// SourceCatchingUp means that the daemon reads a complete list. The last known state is still valid.
	SourceCatchingUp SourceState = "CATCHING_UP"
	// SourceStale means that the daemon currently cannot follow Milo. Its state may be out of date.
	SourceStale SourceState = "STALE"
)

// SourceStatus is the freshness of the daemon's view of Milo. It is independent of the connection to the daemon.
type SourceStatus struct {
	State SourceState
	// Since is when the source entered the state.
	Since time.Time
	// Reason is a machine-readable CamelCase word, such as "Unauthorized". Empty while streaming.
	Reason string
	// Message is human-readable.
	Message string
	// LastContact is the time of Milo's last response.
	LastContact time.Time
	// Name is the name of the source, if the daemon has several.
	Name string
}

// KubeconfigFormat is how a kubeconfig provides its credential.
type KubeconfigFormat string

// The formats of kubeconfigs.
const (
	// FormatEmbedded means that the kubeconfig contains a short-lived credential. It is the default.
	FormatEmbedded KubeconfigFormat = "EMBEDDED"
	// FormatExec means that the kubeconfig contains no credential, but calls an exec credential plugin, which requests one
	// from the daemon.
	FormatExec KubeconfigFormat = "EXEC"
)

// Kubeconfig is a kubeconfig with its lifetime. Its content is secret: formatting and logging omit it. Keep it in
// memory only.
type Kubeconfig struct {
	// Cluster is the name of the cluster.
	Cluster string
	// Content is the content of the kubeconfig file.
	Content []byte
	// ExpiresAt is when its credential expires; zero for FormatExec, which contains no credential.
	ExpiresAt time.Time
	// RefreshAfter is when to request the next kubeconfig.
	RefreshAfter time.Time
	IssuedAt     time.Time
}

// String returns the cluster, the issue time and the expiry, without the content.
func (k Kubeconfig) String() string {
	return fmt.Sprintf("kubeconfig of cluster %q, issued %s, expires %s",
		k.Cluster, formatTime(k.IssuedAt), formatTime(k.ExpiresAt))
}

// GoString returns String, so that %#v omits the content as well.
func (k Kubeconfig) GoString() string { return k.String() }

// LogValue returns String, so that log/slog omits the content.
func (k Kubeconfig) LogValue() slog.Value { return slog.StringValue(k.String()) }

func formatTime(at time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return at.Format(time.RFC3339)
}

// Filter selects clusters. All fields that are set must match; the zero value selects all clusters.
type Filter struct {
	// LabelSelector is a Kubernetes label selector, such as "env in (prod, staging),tier!=silver".
	LabelSelector string
	// Names selects the clusters with one of these names.
	Names []string
	// Organizations selects the clusters of these organizations.
	Organizations []string
	// Sources selects the clusters of these sources of the daemon. An unknown source is an [ErrInvalidRequest].
	Sources []string
}

// Listing contains the engaged clusters at one revision.
type Listing struct {
	// Clusters are ordered by name.
	Clusters []Cluster
	Revision string
	// Source is the status of the daemon's view of Milo; with several sources, that of the least current one.
	Source SourceStatus
	// Sources has the status of each source that the filter covers, if the daemon has several.
	Sources []SourceStatus
	// PendingSources are the sources of which the daemon has no complete list yet. Their clusters are missing.
	PendingSources []string
}

// EngagementReason is the reason why a cluster is or is not engaged.
type EngagementReason string

// The reasons of an engagement or its absence.
const (
	EngagementEngaged  EngagementReason = "ENGAGED"
	EngagementNotReady EngagementReason = "NOT_READY"
	// EngagementOutsideSelector means that the daemon's selector does not match the object.
	EngagementOutsideSelector EngagementReason = "OUTSIDE_SELECTOR"
	// EngagementMalformed means that the object is invalid; see Message.
	EngagementMalformed EngagementReason = "MALFORMED"
	EngagementDeleted   EngagementReason = "DELETED"
	// EngagementConfirmingDeletion means that the cluster is engaged, and the daemon is confirming a reported deletion.
	EngagementConfirmingDeletion EngagementReason = "CONFIRMING_DELETION"
	EngagementUnreachable        EngagementReason = "UNREACHABLE"
	// EngagementDraining means that the cluster is engaged, and about to be disengaged: see Cluster.Draining.
	EngagementDraining EngagementReason = "DRAINING"
	// EngagementRemoved means that the source ended the engagement by one of its own rules; see Message.
	EngagementRemoved EngagementReason = "REMOVED"
	// EngagementUnassigned means that the cluster is ready, and this daemon may not engage it: another daemon of the shard
	// group owns it or has not released it yet, or none owns it at present. See Message.
	EngagementUnassigned EngagementReason = "UNASSIGNED"
	// EngagementRefused means that the API server sent an object of an organization other than the one that the source
	// watches.
	EngagementRefused EngagementReason = "REFUSED"
)

// Engagement is whether a cluster is engaged, and why.
type Engagement struct {
	Engaged bool
	Reason  EngagementReason
	Message string
	Since   time.Time
	// AssignedElsewhere says that another member of the shard group owns the cluster, or has not released it yet.
	// Unless Engaged, only that member knows whether the cluster is engaged.
	AssignedElsewhere bool
}

// Transition is an engagement or disengagement in the past.
type Transition struct {
	Type        EventType
	Reason      DisengageReason
	Message     string
	At          time.Time
	Incarnation string
}

// Report is the daemon's state of one cluster.
type Report struct {
	// Cluster is the current state of an engaged cluster, or its last state; nil if it was never engaged.
	Cluster    *Cluster
	Engagement Engagement
	// Transitions are the last few engagements and disengagements, oldest first.
	Transitions []Transition
	// PendingReleases are the subscribers that have not released the draining cluster, as far as the caller may see them.
	PendingReleases []PendingRelease
	// Source is the freshness of the report; its State is empty if the daemon does not send it.
	Source SourceStatus
}

// PendingRelease is a subscriber that has not released a draining cluster yet.
type PendingRelease struct {
	Subscriber string
	// Caller is the authenticated identity of the subscriber, if there is one.
	Caller    string
	Connected bool
	// Since is when the subscriber connected or disconnected.
	Since time.Time
}

// ServerInfo describes the daemon.
type ServerInfo struct {
	// Version is the daemon's version.
	Version string
	// Mode is the mode or kind of the daemon's only source, such as "project" or "single", or "sources" if it has
	// several.
	Mode string
	// Incarnation is new with each start of the daemon.
	Incarnation string
	StartedAt   time.Time
	Source      SourceStatus
	// Synced is set once the daemon has read a complete list of its source.
	Synced bool
	Counts FleetCounts
	// CredentialIssuers issue the credentials of the daemon's kubeconfigs; empty if it issues none.
	CredentialIssuers []CredentialIssuer
	Limits            Limits
	// Sources are the sources of clusters, if the daemon has several.
	Sources []Source
	// Sharding is nil if the daemon is not sharded.
	Sharding *Sharding
	// Context is the context of Milo that the daemon's only source watches: "root", "organization ORG" or "project
	// PROJECT". Empty for kinds without a context, and for callers that may not see all clusters.
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
	// Counts are the numbers of its clusters, without Subscribers.
	Counts FleetCounts
	// Context is the context of Milo that it watches, as in ServerInfo.
	Context string
}

// Sharding describes the shard group from this daemon's point of view.
type Sharding struct {
	Group string
	// Member is the name of this daemon.
	Member string
	// View is the number of the current view, the set of members among which the clusters are distributed.
	View int64
	// Settled is set if all members have acknowledged the view, and none is joining or leaving.
	Settled bool
	// Members are set for callers that may see all clusters.
	Members []ShardMember
	// ValidFor is how long the daemon's ownership of its clusters remains valid; zero while it owns none.
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

// FleetCounts has the numbers of clusters by state, and of the daemon's subscribers.
type FleetCounts struct {
	Engaged         int
	NotReady        int
	OutsideSelector int
	Malformed       int
	// Subscribers is the number of open watch streams.
	Subscribers int
	// Draining counts the engaged clusters that are about to be disengaged.
	Draining int
	// Unreachable counts the clusters whose API server does not respond to the daemon's probes.
	Unreachable int
	// Unassigned counts the clusters that are ready and owned by other members of the shard group, or by none.
	Unassigned int
	// Refused counts the objects of other organizations that the API server sent to a source that watches one
	// organization.
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
	// FailingClusters counts engaged clusters that get no new credential because of a cluster-specific failure, by reason.
	// It is set only for callers that may see all clusters.
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
