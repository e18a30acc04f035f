package multicluster

import "time"

// SetDiscoveryTimeout sets the timeout of requests for a cluster's API discovery documents.
func (p *Provider) SetDiscoveryTimeout(timeout time.Duration) { p.documents.Timeout = timeout }
