package discovery

import "fmt"

// Disengaged is the cancellation cause of a context whose cluster was disengaged, or is draining.
type Disengaged struct {
	// Cluster is the last known state of the cluster.
	Cluster Cluster
	Reason  DisengageReason
	// Message is human-readable.
	Message string
}

func (d *Disengaged) Error() string {
	text := fmt.Sprintf("cluster %s was disengaged or is draining", d.Cluster.Name)
	if d.Reason != "" {
		text += fmt.Sprintf(" (%s)", d.Reason)
	}
	if d.Message != "" {
		text += ": " + d.Message
	}
	return text
}
