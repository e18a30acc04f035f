// The sums of these modules are made, and held against the public checksum database, where this is built.
module publishing/library

go 1.25.0

require (
	k8s.io/api v0.35.3
	k8s.io/apimachinery v0.35.3
	k8s.io/client-go v0.35.3
	k8s.io/klog/v2 v2.140.0
	sigs.k8s.io/cluster-inventory-api v0.1.2
	sigs.k8s.io/controller-runtime v0.23.3
	sigs.k8s.io/multicluster-runtime v0.23.3
)
