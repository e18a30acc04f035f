// The sums of these modules are made, and held against the public checksum database, where this is built.
module real/milo

go 1.25.0

tool go.miloapis.com/milo/cmd/milo

require go.miloapis.com/milo v0.32.5
