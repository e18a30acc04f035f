package discovery

import (
	"fmt"
	"log/slog"
	"time"
)

// The types of this file mirror the messages of milo.discovery.v1. A value that a newer daemon sends and this client
// does not know is the zero value of its type, as is one that is not set.

// EventType is what happened to a cluster.
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
	// EventRefreshed: the cluster is as before, except for what the daemon itself counts, such as the incarnation. The
	// client makes it after the daemon was replaced. Ignore it, unless you keep Cluster.Incarnation.
	EventRefreshed EventType = "REFRESHED"
)

// DisengageReason is why a cluster was disengaged.
type DisengageReason string

// The reasons of disengagements.
const (
	// ReasonUnspecified: not known. The cluster was missing when the connection to the daemon came back. Do not treat
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
	// ReasonMoved: another shard of the daemon has the cluster now.
	ReasonMoved DisengageReason = "MOVED"
	// ReasonRemoved: the source of the daemon removed the cluster by its own rules.
	ReasonRemoved DisengageReason = "REMOVED"
	// ReasonOwnershipLost: the daemon can't renew its ownership, and another member of its shard group may engage the
	// cluster.
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
	// Name of the project, and the key of the cluster everywhere.
	Name string
	// UID of the project.
	UID string
	// Endpoint of its API server: scheme, host, and path if there is one.
	Endpoint string
	// Organization that owns the project; empty if that is not known.
	Organization string
	Labels       map[string]string
	// Annotations that the configuration of the daemon lets through.
	Annotations map[string]string
	EngagedAt   time.Time
	// DeletionRequestedAt is set once the deletion of the project was requested. Its control plane answers until the
	// finalizers are done: finish the clean-up; the cluster is disengaged afterwards.
	DeletionRequestedAt time.Time
	// DeletionMessage says what the deletion waits for.
	DeletionMessage string
	// Suspended projects serve reads and refuse writes. They stay engaged.
	Suspended bool
	// Connectivity is whether the daemon reaches the API server.
	Connectivity Connectivity
	// SourceResourceVersion is the version of the upstream object that this view was made from.
	SourceResourceVersion string
	// Incarnation is new each time that the daemon engages the cluster, and the same for all subscribers.
	Incarnation string
	// Draining is set once the cluster is about to be disengaged, in watches with WatchOptions.Subscriber: end the work
	// on it, and call [Client.Release]. Its credentials work until it is disengaged.
	Draining *Draining
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

// Connectivity is what the probes of the daemon found of a cluster.
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
	// LastContact is when Milo last answered.
	LastContact time.Time
}

// KubeconfigFormat is how a kubeconfig carries its credential.
type KubeconfigFormat string

// The formats of kubeconfigs.
const (
	// FormatEmbedded: the credential is inside, usable until it expires. The default.
	FormatEmbedded KubeconfigFormat = "EMBEDDED"
	// FormatExec: no secret inside; an exec credential plugin asks the daemon each time.
	FormatExec KubeconfigFormat = "EXEC"
)

// Kubeconfig is a credential with all that is needed to use it. Keep it in memory. Its content is omitted where it is
// formatted or logged.
type Kubeconfig struct {
	// Cluster is the name of the cluster.
	Cluster string
	// Content is a kubeconfig file.
	Content []byte
	// ExpiresAt is when its credential expires; zero for FormatExec, which has none.
	ExpiresAt time.Time
	// RefreshAfter is when to ask for another.
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

// Filter selects clusters. All that is set must match; the zero value selects all clusters.
type Filter struct {
	// LabelSelector in Kubernetes syntax, such as "env in (prod, staging),tier!=silver".
	LabelSelector string
	// Names selects any of these clusters.
	Names []string
	// Organizations selects the clusters of any of these.
	Organizations []string
}

// Listing is the engaged clusters at one revision.
type Listing struct {
	// Clusters are ordered by name.
	Clusters []Cluster
	Revision string
	Source   SourceStatus
}

// EngagementReason is why a name is engaged, or is not.
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
)

// Engagement says whether a name is engaged, and why.
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
}

// PendingRelease is a subscriber that has not released a draining cluster yet.
type PendingRelease struct {
	Subscriber string
	// Caller is who the subscriber is, as far as the daemon verified it.
	Caller    string
	Connected bool
	// Since when it is connected, or disconnected.
	Since time.Time
}

// ServerInfo describes the daemon.
type ServerInfo struct {
	// Version of the program.
	Version string
	// Mode is "project", "project-control-plane", "single", or that of an added package.
	Mode string
	// Incarnation is new with each start of the daemon.
	Incarnation string
	StartedAt   time.Time
	Source      SourceStatus
	// Synced is set once the daemon has seen a complete list of its source.
	Synced bool
	Counts FleetCounts
	// CredentialSources of the kubeconfigs that the daemon issues; empty if it issues none.
	CredentialSources []CredentialSource
	Limits            Limits
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
}

// CredentialSource is a configured source of kubeconfigs.
type CredentialSource struct {
	Name string
	// Type is "token-request", "exec", and so on.
	Type    string
	Healthy bool
	// Message says what is wrong with it.
	Message string
	// ExpiresAt is when its own credential expires, if it has one.
	ExpiresAt time.Time
}

// Limits are the bounds of the daemon's answers.
type Limits struct {
	DefaultHeartbeatInterval time.Duration
	StalledTimeout           time.Duration
	MaxKubeconfigTTL         time.Duration
	MaxPageSize              int
	MaxFilterBytes           int
}
