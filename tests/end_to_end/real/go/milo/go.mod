// The sums of these modules are made, and held against the public checksum database, where this is built.
module real/milo

go 1.25.0

require (
	github.com/spf13/cobra v1.10.0
	go.miloapis.com/milo v0.32.5
	k8s.io/component-base v0.35.0
)
