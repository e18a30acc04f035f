module go.miloapis.com/discovery

go 1.25.0

// The lowest versions that work, so that operators are not forced to upgrade. The generated code needs the generic
// streams of grpc 1.64.0, which itself requires a golang.org/x/net with CVE-2023-45288; 1.65 does not.
require (
	go.uber.org/goleak v1.3.0
	golang.org/x/sys v0.20.0
	google.golang.org/grpc v1.65.0
	google.golang.org/protobuf v1.36.6
)

require google.golang.org/genproto/googleapis/rpc v0.0.0-20240528184218-531527333157

require (
	golang.org/x/net v0.25.0 // indirect
	golang.org/x/text v0.15.0 // indirect
)
