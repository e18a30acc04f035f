// The sums of these modules are made, and held against the public checksum database, where this is built.
module publishing/upstream

go 1.26.3

require (
	k8s.io/api v0.36.0
	k8s.io/apimachinery v0.36.0
	k8s.io/client-go v0.36.0
	k8s.io/klog/v2 v2.140.0
	sigs.k8s.io/cluster-inventory-api v0.1.0
	sigs.k8s.io/controller-runtime v0.24.1
	sigs.k8s.io/multicluster-runtime v0.24.1
	sigs.k8s.io/multicluster-runtime/providers/cluster-inventory-api v0.24.1
)
