package objects

import "k8s.io/client-go/rest"

// unlimited disables client-go's rate limit, in favor of the API server's priority and fairness. With 0, client-go would
// limit requests to 5 per second.
const unlimited = -1

// RESTConfig returns the configuration of clients of a cluster for as long as it is engaged, with a credential that
// renews itself: see [discovery.EngagedCluster.Transport]. With NewFrom, its requests fail: the source has none.
func RESTConfig(cluster Cluster) *rest.Config {
	return &rest.Config{Host: cluster.Current().Endpoint, Transport: cluster.Transport(), QPS: unlimited}
}
