// Package discoverytest provides a fake daemon for tests of programs that use package discovery.
//
// A [Daemon] runs in the process of the test, with in-memory connections. It implements all calls of the real daemon,
// with a fleet that the test engages, updates and disengages, and with faults: broken streams, missing heartbeats,
// restarts, resets, errors, and a stale source.
//
//	func TestOperator(t *testing.T) {
//		daemon := discoverytest.New(t)
//		daemon.Engage(discovery.Cluster{Name: "alpha", Labels: map[string]string{"env": "prod"}})
//		operator := StartOperator(t, daemon.Client())
//		...
//		daemon.Restart()
//		daemon.Disengage("alpha", discovery.ReasonDeleted)
//	}
//
// It works inside a bubble of testing/synctest, where heartbeats and backoff take no real time.
package discoverytest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	"go.miloapis.com/discovery"
	pb "go.miloapis.com/discovery/v1"
)

const (
	name        = "discoverytest"
	address     = "unix:///" + name
	errorDomain = "discovery.miloapis.com"
	waitLimit   = 30 * time.Second
	bufferBytes = 1 << 20
)

// Daemon is an in-memory fake daemon. Its methods are safe for concurrent use. Some call t.Fatalf, for example if the
// named cluster is not engaged, so call them from the goroutine of the test.
type Daemon struct {
	t testing.TB

	mutex   sync.Mutex
	changed chan struct{} // closed and replaced by notify

	listener *bufconn.Listener // nil while stopped
	server   *grpc.Server

	starts     int // each start is another incarnation of the daemon
	startedAt  time.Time
	synced     bool
	silent     bool
	source     *pb.SourceStatus
	records    map[string]*record
	log        []entry
	resets     int
	pending    []string
	member     string // the daemon's name in its shard group
	sharded    bool
	ownedFor   time.Duration
	renewals   int
	breaks     int
	breakError error
	failures   map[string]error
	kubeconfig func(discovery.Cluster, int) discovery.Kubeconfig

	streams  map[*stream]struct{}
	requests []*pb.WatchClustersRequest
	ended    []string
}

// entry is one batch in the log of the daemon.
type entry struct {
	changes []change
	source  *pb.SourceStatus
}

// daemons counts the daemons of the process, for unique names of shard group members.
var daemons atomic.Int64

// New starts a daemon with an empty fleet and a complete view. It stops at the end of the test.
func New(t testing.TB) *Daemon {
	daemon := &Daemon{
		t:          t,
		member:     fmt.Sprintf("member-%d", daemons.Add(1)),
		changed:    make(chan struct{}),
		synced:     true,
		source:     &pb.SourceStatus{State: pb.SourceStatus_STATE_STREAMING, Since: now(), LastContact: now()},
		records:    map[string]*record{},
		failures:   map[string]error{},
		kubeconfig: defaultKubeconfig,
		streams:    map[*stream]struct{}{},
	}
	daemon.Start()
	t.Cleanup(daemon.Stop)
	return daemon
}

// Options returns the options with which [discovery.Dial] connects to the daemon. Change what the test needs, such as
// Backoff; keep Address, Credentials and DialOptions.
func (d *Daemon) Options() discovery.Options {
	return discovery.Options{
		Address:     address,
		Credentials: &discovery.Credentials{},
		DialOptions: []grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return d.dial(ctx) }),
		},
		Backoff: discovery.Backoff{Initial: time.Millisecond, Max: 100 * time.Millisecond},
	}
}

// Client returns a new client of the daemon, with a short backoff. It is closed at the end of the test.
func (d *Daemon) Client() *discovery.Client {
	d.t.Helper()
	client, err := discovery.Dial(d.Options())
	if err != nil {
		d.t.Fatalf("discoverytest: %v", err)
	}
	d.t.Cleanup(func() { _ = client.Close() })
	return client
}

func (d *Daemon) dial(ctx context.Context) (net.Conn, error) {
	d.mutex.Lock()
	listener := d.listener
	d.mutex.Unlock()
	if listener == nil {
		return nil, errors.New("the daemon of discoverytest is stopped")
	}
	return listener.DialContext(ctx)
}

// Start starts the daemon after Stop, with a new incarnation. It keeps the fleet, including changes made while it was
// stopped, but cannot resume earlier streams, so clients receive a snapshot.
func (d *Daemon) Start() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if d.server != nil {
		return
	}
	d.starts++
	d.startedAt = time.Now()
	d.log = nil
	for _, record := range d.records {
		if record.engaged {
			record.engageAgain(d.starts)
		}
	}
	d.listener = bufconn.Listen(bufferBytes)
	d.server = grpc.NewServer(
		// Like the real daemon, allow keepalive pings on idle streams.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second}),
		grpc.WaitForHandlers(true), // so that Streams and WaitForStreams do not count streams from before Stop
	)
	pb.RegisterDiscoveryServiceServer(d.server, service{daemon: d})
	go func(server *grpc.Server, listener net.Listener) { _ = server.Serve(listener) }(d.server, d.listener)
	d.notify()
}

// Stop stops the daemon and closes all connections. Clusters stay engaged; the fleet can be changed before Start.
func (d *Daemon) Stop() {
	d.mutex.Lock()
	server := d.server
	d.server, d.listener = nil, nil
	d.mutex.Unlock()
	if server != nil {
		server.Stop()
	}
}

// Restart calls Stop and Start.
func (d *Daemon) Restart() {
	d.Stop()
	d.Start()
}

// Engage engages clusters, in one batch. See [Changes.Engage].
func (d *Daemon) Engage(clusters ...discovery.Cluster) {
	d.t.Helper()
	d.Batch(func(changes *Changes) { changes.Engage(clusters...) })
}

// Update changes an engaged cluster.
func (d *Daemon) Update(name string, change func(*discovery.Cluster)) {
	d.t.Helper()
	d.Batch(func(changes *Changes) { changes.Update(name, change) })
}

// Disengage disengages a cluster.
func (d *Daemon) Disengage(name string, reason discovery.DisengageReason) {
	d.t.Helper()
	d.Batch(func(changes *Changes) { changes.Disengage(name, reason) })
}

// Drain begins a planned disengagement. See [Changes.Drain].
func (d *Daemon) Drain(name string, reason discovery.DisengageReason) {
	d.t.Helper()
	d.Batch(func(changes *Changes) { changes.Drain(name, reason) })
}

// Released reports whether a subscriber has released the current engagement of a cluster, or its last one.
func (d *Daemon) Released(name, subscriber string) bool {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	known, ok := d.records[name]
	return ok && known.released[subscriber]
}

// Replace deletes a project and creates another one of the same name. See [Changes.Replace].
func (d *Daemon) Replace(cluster discovery.Cluster) {
	d.t.Helper()
	d.Batch(func(changes *Changes) { changes.Replace(cluster) })
}

// Rotate issues another kubeconfig for an engaged cluster, and sends it to the streams that include kubeconfigs.
func (d *Daemon) Rotate(name string) {
	d.t.Helper()
	d.Batch(func(changes *Changes) { changes.Rotate(name) })
}

// Batch sends several changes as one batch:
//
//	daemon.Batch(func(changes *discoverytest.Changes) {
//		changes.Engage(alpha)
//		changes.Disengage("beta", discovery.ReasonNotReady)
//	})
//
// The function must not call the daemon itself.
func (d *Daemon) Batch(collect func(*Changes)) {
	d.t.Helper()
	d.mutex.Lock()
	defer d.mutex.Unlock()
	changes := &Changes{daemon: d}
	collect(changes)
	d.log = append(d.log, entry{changes: changes.collected})
	d.notify()
}

// SetKubeconfigs sets the function that creates kubeconfigs from now on. Its number counts the kubeconfigs of the
// cluster, from 1. Clients reject content other than JSON of the form that the real daemon writes. Cluster, IssuedAt,
// RefreshAfter and ExpiresAt have defaults, with a lifetime of an hour.
func (d *Daemon) SetKubeconfigs(issue func(cluster discovery.Cluster, number int) discovery.Kubeconfig) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.kubeconfig = issue
}

// SetSource sets the state of the daemon's view of Milo and sends it to all streams.
func (d *Daemon) SetSource(source discovery.SourceStatus) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.source = fromSource(source)
	d.log = append(d.log, entry{source: d.source})
	d.notify()
}

// SetSynced sets whether the daemon has a complete view of Milo. The default is true. While it is false, new streams
// receive only heartbeats, and ListClusters and IssueKubeconfig fail with UNAVAILABLE.
func (d *Daemon) SetSynced(synced bool) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.synced = synced
	d.notify()
}

// SetPendingSources sets the sources of which the daemon has no complete list yet, and sends a snapshot to all streams.
// The clusters of these sources are missing from snapshots and listings.
func (d *Daemon) SetPendingSources(sources ...string) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.pending = sources
	d.resets++
	d.notify()
}

// Shard makes the daemon a member of a shard group. Streams report that in their next batch with a source status, such
// as their first batch or a heartbeat. Each renewal of the ownership is valid for validFor; with zero, the daemon owns
// no clusters, and earlier renewals expire. As with a daemon, those that name a subscriber without a stream are not
// valid. Use Fail("RenewOwnership", err) to make renewals fail.
func (d *Daemon) Shard(validFor time.Duration) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.sharded, d.ownedFor = true, validFor
}

// Renewals returns the number of ownership renewals that subscribers requested.
func (d *Daemon) Renewals() int {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.renewals
}

// Reset sends a snapshot to all open streams.
func (d *Daemon) Reset() {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.resets++
	d.notify()
}

// BreakStreams closes all open streams with an error; nil means UNAVAILABLE. Clients resume, unless the error is
// terminal.
func (d *Daemon) BreakStreams(err error) {
	if err == nil {
		err = status.Error(codes.Unavailable, "the stream was broken by the test")
	}
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.breaks++
	d.breakError = err
	d.notify()
}

// Fail makes all calls of a method fail with an error, such as Fail("IssueKubeconfig",
// discoverytest.Error(codes.PermissionDenied, "FORBIDDEN", "no")). With a nil error, calls succeed again. Failures of
// WatchClusters do not affect open streams.
func (d *Daemon) Fail(method string, err error) {
	d.t.Helper()
	known := slices.ContainsFunc(pb.DiscoveryService_ServiceDesc.Methods, func(each grpc.MethodDesc) bool {
		return each.MethodName == method
	})
	if !known && method != "WatchClusters" {
		d.t.Fatalf("discoverytest: DiscoveryService has no method %q", method)
	}
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.failures[method] = err
}

// Error returns an error in the form that the daemon returns: a gRPC status with a machine-readable reason.
func Error(code codes.Code, reason, message string) error {
	plain := status.New(code, message)
	detailed, err := plain.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: errorDomain})
	if err != nil {
		return plain.Err() // code OK, which carries no details
	}
	return detailed.Err()
}

// SetSilent sets whether streams are silent: connections stay open, but the daemon sends nothing on open and new
// streams, not even heartbeats. Unary calls are not affected.
func (d *Daemon) SetSilent(silent bool) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.silent = silent
	d.notify()
}

// Cluster returns the state of an engaged cluster, or its last state before it was disengaged.
func (d *Daemon) Cluster(name string) discovery.Cluster {
	d.t.Helper()
	d.mutex.Lock()
	defer d.mutex.Unlock()
	found, ok := d.records[name]
	if !ok {
		d.t.Fatalf("discoverytest: no cluster %q was ever engaged", name)
		return discovery.Cluster{} // reached if a test of this package replaces Fatalf
	}
	return toCluster(found.cluster)
}

// Issued returns the number of kubeconfigs that were issued for a cluster.
func (d *Daemon) Issued(name string) int {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if found, ok := d.records[name]; ok {
		return found.issued
	}
	return 0
}

// Streams returns the number of open streams.
func (d *Daemon) Streams() int {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return len(d.streams)
}

// WatchRequests returns the requests of all streams opened so far, oldest first.
func (d *Daemon) WatchRequests() []*pb.WatchClustersRequest {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return slices.Clone(d.requests)
}

// EndedSubscriptions returns the subscribers that ended their subscription, in order.
func (d *Daemon) EndedSubscriptions() []string {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return slices.Clone(d.ended)
}

// WaitForStreams waits until count streams are open and have received all changes. It fails the test after 30 s.
func (d *Daemon) WaitForStreams(count int) {
	d.t.Helper()
	limit := time.NewTimer(waitLimit)
	defer limit.Stop()
	for {
		d.mutex.Lock()
		open, changed := 0, d.changed
		for each := range d.streams {
			if each.isCurrent(d) {
				open++
			}
		}
		d.mutex.Unlock()
		if open == count {
			return
		}
		select {
		case <-changed:
		case <-limit.C:
			d.t.Fatalf("discoverytest: %d streams are open and current after %v, want %d", open, waitLimit, count)
			return
		}
	}
}

// notify wakes the streams and WaitForStreams.
func (d *Daemon) notify() {
	close(d.changed)
	d.changed = make(chan struct{})
}

func now() *timestamppb.Timestamp { return timestamppb.New(time.Now()) }
