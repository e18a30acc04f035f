package discovery

import "fmt"

// Disengaged is the cause of a context that ended because its cluster was disengaged, or is about to be.
type Disengaged struct {
	// Cluster is the cluster as last known.
	Cluster Cluster
	Reason  DisengageReason
	// Message is for people.
	Message string
}

func (d *Disengaged) Error() string {
	text := fmt.Sprintf("cluster %s was disengaged", d.Cluster.Name)
	if d.Reason != "" {
		text += fmt.Sprintf(" (%s)", d.Reason)
	}
	if d.Message != "" {
		text += ": " + d.Message
	}
	return text
}
