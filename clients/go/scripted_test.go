package discovery_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/test/bufconn"

	"go.miloapis.com/discovery"
	pb "go.miloapis.com/discovery/v1"
)

// scriptedDaemon is a daemon with scripted streams and responses.
type scriptedDaemon struct {
	pb.UnimplementedDiscoveryServiceServer
	listener *bufconn.Listener
	streams  chan *scriptedStream
	issue    func() (*pb.IssueKubeconfigResponse, error)
	get      func() (*pb.GetClusterResponse, error)
	release  func(context.Context) (*pb.ReleaseClusterResponse, error)
}

// scriptedStream is one open stream. A test closes it by sending an error on end.
type scriptedStream struct {
	request *pb.WatchClustersRequest
	batches chan *pb.WatchClustersResponse
	end     chan error
	ended   <-chan struct{}
}

func newScriptedDaemon(t *testing.T) *scriptedDaemon {
	t.Helper()
	daemon := &scriptedDaemon{listener: bufconn.Listen(1 << 16), streams: make(chan *scriptedStream)}
	// Like the real daemon, allow keepalive pings on idle streams.
	server := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second}))
	pb.RegisterDiscoveryServiceServer(server, daemon)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(daemon.listener) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	return daemon
}

func (d *scriptedDaemon) client(t *testing.T) *discovery.Client {
	return d.clientWith(t, discovery.Options{})
}

func (d *scriptedDaemon) clientWith(t *testing.T, options discovery.Options) *discovery.Client {
	t.Helper()
	client, err := discovery.Dial(discovery.Options{
		Timeout:     options.Timeout,
		Address:     "unix:///scripted",
		Credentials: &discovery.Credentials{},
		DialOptions: []grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return d.listener.DialContext(ctx)
			}),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func (d *scriptedDaemon) WatchClusters(
	request *pb.WatchClustersRequest, sender grpc.ServerStreamingServer[pb.WatchClustersResponse],
) error {
	stream := &scriptedStream{
		request: request,
		batches: make(chan *pb.WatchClustersResponse),
		end:     make(chan error),
		ended:   sender.Context().Done(),
	}
	select {
	case d.streams <- stream:
	case <-stream.ended:
		return sender.Context().Err()
	}
	for {
		select {
		case batch := <-stream.batches:
			if err := sender.Send(batch); err != nil {
				return err
			}
		case err := <-stream.end:
			return err
		case <-stream.ended:
			return sender.Context().Err()
		}
	}
}

func (d *scriptedDaemon) IssueKubeconfig(
	context.Context, *pb.IssueKubeconfigRequest,
) (*pb.IssueKubeconfigResponse, error) {
	return d.issue()
}

func (d *scriptedDaemon) GetCluster(context.Context, *pb.GetClusterRequest) (*pb.GetClusterResponse, error) {
	return d.get()
}

func (d *scriptedDaemon) ReleaseCluster(
	ctx context.Context, _ *pb.ReleaseClusterRequest,
) (*pb.ReleaseClusterResponse, error) {
	return d.release(ctx)
}

// begin waits for the next stream, sends its first batches, and returns it.
func (d *scriptedDaemon) begin(batches ...*pb.WatchClustersResponse) *scriptedStream {
	stream := <-d.streams
	stream.send(batches...)
	return stream
}

func (s *scriptedStream) send(batches ...*pb.WatchClustersResponse) {
	for _, batch := range batches {
		s.batches <- batch
	}
}

func engaged(name string) *pb.ClusterEvent {
	return &pb.ClusterEvent{Type: pb.ClusterEvent_TYPE_ENGAGED, Cluster: &pb.Cluster{Name: name, Uid: "uid-of-" + name}}
}

func snapshot(revision string, events ...*pb.ClusterEvent) *pb.WatchClustersResponse {
	return &pb.WatchClustersResponse{Events: events, Revision: revision, Synced: true, Reset_: true}
}

func following(previous, revision string, events ...*pb.ClusterEvent) *pb.WatchClustersResponse {
	return &pb.WatchClustersResponse{Events: events, PreviousRevision: previous, Revision: revision, Synced: true}
}
