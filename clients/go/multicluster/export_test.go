package multicluster

import "time"

// SetDiscoveryTimeout sets how long a cluster may take to answer a request for a discovery document.
func (p *Provider) SetDiscoveryTimeout(timeout time.Duration) { p.documents.Timeout = timeout }
