module example.com/milo-discovery-subscriber

go 1.25.0

require go.miloapis.com/discovery v0.1.0

// Uses the client of this repository. Elsewhere, remove this line and run: go get go.miloapis.com/discovery
replace go.miloapis.com/discovery => ../../clients/go

require (
	golang.org/x/net v0.55.0 // indirect
	golang.org/x/sys v0.45.0 // indirect
	golang.org/x/text v0.37.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260526163538-3dc84a4a5aaa // indirect
	google.golang.org/grpc v1.83.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)
