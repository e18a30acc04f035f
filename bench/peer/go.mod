// The build generates go.sum, and verifies it with the public checksum database.
module peer

go 1.25.0

require (
	github.com/go-logr/logr v1.4.3
	go.miloapis.com/milo v0.32.5
	k8s.io/apimachinery v0.35.0
	k8s.io/client-go v0.35.0
	sigs.k8s.io/controller-runtime v0.23.3
	sigs.k8s.io/multicluster-runtime v0.23.3
)
