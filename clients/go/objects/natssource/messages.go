package natssource

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"go.miloapis.com/discovery"
)

// The headers that a reader compares.
const (
	goneHeader  = "Milo-Gone"
	epochHeader = "Milo-Epoch"
)

// The states of a scope, and a reason for which it ended, that mean something to the reader.
const (
	endedState = "ENDED"
	withdrawn  = "WITHDRAWN"
)

// stored is a message as the stream has it.
type stored struct {
	subject  string
	sequence uint64
	at       time.Time
	header   nats.Header
	body     []byte
}

// scopeMessage is the state of a scope. It has the cluster, for readers that may read one kind only.
type scopeMessage struct {
	Cluster clusterFields `json:"cluster"`
	State   struct {
		State   string    `json:"state"`
		Since   time.Time `json:"since"`
		Problem string    `json:"problem"`
		Reason  string    `json:"reason"`
	} `json:"state"`
	// Epoch is which of the scopes of this kind in this cluster it is: it grows with each.
	Epoch int64 `json:"epoch"`
	// Publisher has read the scope, as its heartbeats name it; empty if any may have.
	Publisher string `json:"publisher"`

	at       time.Time // when it was stored
	sequence uint64
}

// heartbeatMessage says that a publisher runs.
type heartbeatMessage struct {
	// Publisher is the member of a shard group whose clusters it follows; empty outside of a group.
	Publisher string `json:"publisher"`
	// Sources are why it does not follow all clusters of a source, by the name of the source; empty if it does.
	Sources map[string]string `json:"sources"`
}

type clusterFields struct {
	Name         string            `json:"name"`
	Incarnation  string            `json:"incarnation"`
	UID          string            `json:"uid"`
	Source       string            `json:"source"`
	Organization string            `json:"organization"`
	Endpoint     string            `json:"endpoint"`
	Labels       map[string]string `json:"labels"`
}

func (c clusterFields) cluster(incarnation string) discovery.Cluster {
	return discovery.Cluster{
		Name: c.Name, UID: c.UID, Endpoint: c.Endpoint, Organization: c.Organization, Labels: c.Labels, Source: c.Source,
		Incarnation: incarnation,
	}
}

// objectMessage is an object as it was last sent; with gone, why it is no longer there.
type objectMessage struct {
	epoch int64 // that of its scope: an object of an earlier one is no longer there
	gone  string
	body  json.RawMessage
}

func decodeScope(message stored) (scopeMessage, error) {
	found := scopeMessage{at: message.at, sequence: message.sequence}
	if err := json.Unmarshal(message.body, &found); err != nil {
		return found, message.unusable(err)
	}
	if found.Cluster.Name == "" || found.State.State == "" {
		return found, message.unusable(fmt.Errorf("it has no cluster, or no state"))
	}
	return found, nil
}

// decodeHeartbeat returns nil for that of an earlier version, which stands for all clusters.
func decodeHeartbeat(message stored) (*heartbeatMessage, error) {
	if len(message.body) == 0 {
		return nil, nil
	}
	var found heartbeatMessage
	if err := json.Unmarshal(message.body, &found); err != nil {
		return nil, message.unusable(err)
	}
	return &found, nil
}

func decodeObject(message stored) (objectMessage, error) {
	epoch, err := strconv.ParseInt(message.header.Get(epochHeader), 10, 64)
	if err != nil {
		return objectMessage{}, message.unusable(fmt.Errorf("no %s: %w", epochHeader, err))
	}
	body := bytes.TrimRight(message.body, " ") // which make it longer than the message that it is gone
	return objectMessage{epoch: epoch, gone: message.header.Get(goneHeader), body: body}, nil
}

func (s stored) unusable(err error) error {
	return fmt.Errorf("%s, sequence %d: not a message of milo-objects: %w", s.subject, s.sequence, err)
}

// reasonOf returns why a cluster ended. A newer publisher may know a reason that this reader does not.
func reasonOf(text string) discovery.DisengageReason {
	switch reason := discovery.DisengageReason(text); reason {
	case discovery.ReasonDeleted, discovery.ReasonNotReady, discovery.ReasonReplaced, discovery.ReasonLabelsChanged,
		discovery.ReasonUnreachable, discovery.ReasonRevoked, discovery.ReasonMoved, discovery.ReasonRemoved,
		discovery.ReasonOwnershipLost:
		return reason
	default:
		return discovery.ReasonUnspecified
	}
}
