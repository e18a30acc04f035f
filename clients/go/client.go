package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"

	pb "go.miloapis.com/discovery/v1"
)

const (
	defaultTimeout = 10 * time.Second
	// A page of clusters with long annotations can exceed gRPC's default, 4 MiB.
	maxMessageBytes = 64 << 20
)

// Options configures a [Client]. With the zero value, address and credentials are read from the environment.
type Options struct {
	// Address is the daemon's address: unix:///path or HOST:PORT. The default is MILO_DISCOVERY_ADDRESS, or else
	// [DefaultAddress].
	Address string
	// Credentials are the client's credentials; nil means [CredentialsFromEnvironment].
	Credentials *Credentials
	// Timeout is the timeout of unary calls, in addition to the deadline of their context. Zero means 10 s, and a negative
	// value no timeout. Watches have no timeout.
	Timeout time.Duration
	// Backoff configures the delays before watches reconnect.
	Backoff Backoff
	// DialOptions are added to those of the client, for example interceptors or a dialer.
	DialOptions []grpc.DialOption
}

// Client is a client of the daemon. It is safe for concurrent use.
type Client struct {
	target      string
	credentials Credentials
	timeout     time.Duration
	backoff     Backoff
	clock       clock
	dialOptions []grpc.DialOption
	calls       sharedConn
	untrusted   atomic.Pointer[error] // ErrUntrustedServer of the last connection attempt, or nil
	connections connections           // to clusters

	// closed is canceled by Close and ends the watches.
	closed context.Context
	close  context.CancelFunc
}

// Dial returns a client of the daemon. It does not connect; calls and watches do. It fails with [ErrInvalidAddress] or
// [ErrInvalidCredentials].
func Dial(options Options) (*Client, error) {
	target, err := target(options.Address)
	if err != nil {
		return nil, err
	}
	var credentials Credentials
	if options.Credentials != nil {
		credentials = *options.Credentials
	} else if credentials, err = CredentialsFromEnvironment(); err != nil {
		return nil, err
	}
	if err := credentials.check(target); err != nil {
		return nil, err
	}
	client := &Client{
		target:      target,
		credentials: credentials,
		timeout:     cmp.Or(options.Timeout, defaultTimeout),
		backoff:     options.Backoff.withDefaults(),
		clock:       newClock(),
		dialOptions: options.DialOptions,
	}
	client.calls.dial = client.dial
	client.closed, client.close = context.WithCancel(context.Background())
	return client, nil
}

// Close cancels all calls and watches of the client, which fail with [ErrClosed]. It is idempotent, and always returns
// nil.
func (c *Client) Close() error {
	c.close()
	c.calls.close()
	return nil
}

// List returns the engaged clusters that match a filter, ordered by name. It fails with [ErrUnavailable] until the
// daemon has a complete view of its source, or of one of several sources.
func (c *Client) List(ctx context.Context, filter Filter) (*Listing, error) {
	request := &pb.ListClustersRequest{Filter: fromFilter(filter)}
	listing := &Listing{}
	for {
		page, err := call(ctx, c, "ListClusters", pb.DiscoveryServiceClient.ListClusters, request)
		if err != nil {
			return nil, err
		}
		for _, each := range page.GetClusters() {
			listing.Clusters = append(listing.Clusters, toCluster(each))
		}
		listing.Revision, listing.Source = page.GetRevision(), toSource(page.GetSource())
		listing.Sources, listing.PendingSources = convert(page.GetSources(), toSource), page.GetPendingSources()
		request.PageToken = page.GetNextPageToken()
		if request.PageToken == "" {
			return listing, nil
		}
	}
}

// Get returns the daemon's state of a cluster, engaged or not. It fails with [ErrNotFound] if the daemon does not know
// the name, or the caller may not see it.
func (c *Client) Get(ctx context.Context, name string) (*Report, error) {
	response, err := call(ctx, c, "GetCluster", pb.DiscoveryServiceClient.GetCluster, &pb.GetClusterRequest{Name: name})
	if err != nil {
		return nil, err
	}
	return toReport(response), nil
}

// Info returns the daemon's version, state and limits.
func (c *Client) Info(ctx context.Context) (*ServerInfo, error) {
	response, err := call(ctx, c, "GetServerInfo", pb.DiscoveryServiceClient.GetServerInfo, &pb.GetServerInfoRequest{})
	if err != nil {
		return nil, err
	}
	return toServerInfo(response), nil
}

// IssueOptions configures [Client.Issue].
type IssueOptions struct {
	// TTL is the requested lifetime of the kubeconfig; zero means the daemon's default. The daemon may shorten it:
	// see Kubeconfig.ExpiresAt.
	TTL time.Duration
	// Format is the format of the kubeconfig; empty means FormatEmbedded.
	Format KubeconfigFormat
	// Incarnation restricts the call to that incarnation of the cluster. If the cluster has another one, Issue fails with
	// [ErrPreconditionFailed].
	Incarnation string
}

// Issue returns a short-lived kubeconfig for an engaged cluster. It fails with [ErrNotFound] if the cluster is not
// engaged, with [ErrPreconditionFailed] if the daemon has no credential issuer, and with [ErrUnavailable] while the
// issuer is unreachable and no valid kubeconfig is cached. If the response is a kubeconfig that the daemon would not
// write, such as one that runs another program or reads a file, it fails with [ErrUnusableKubeconfig].
func (c *Client) Issue(ctx context.Context, cluster string, options IssueOptions) (*Kubeconfig, error) {
	request := &pb.IssueKubeconfigRequest{
		Cluster:     cluster,
		Ttl:         fromSpan(options.TTL),
		Incarnation: options.Incarnation,
	}
	if options.Format != "" {
		format, ok := pb.KubeconfigFormat_value["KUBECONFIG_FORMAT_"+string(options.Format)]
		if !ok {
			return nil, fmt.Errorf("%w: IssueOptions.Format: unknown format %q; use FormatEmbedded or FormatExec",
				ErrInvalidRequest, options.Format)
		}
		request.Format = pb.KubeconfigFormat(format)
	}
	response, err := call(ctx, c, "IssueKubeconfig", pb.DiscoveryServiceClient.IssueKubeconfig, request)
	if err != nil {
		return nil, err
	}
	if response.GetKubeconfig() == nil {
		return nil, errors.New("IssueKubeconfig: the daemon returned no kubeconfig")
	}
	if err := checkKubeconfig(response.GetKubeconfig().GetKubeconfig(), options.Format, cluster); err != nil {
		return nil, fmt.Errorf("IssueKubeconfig: cluster %q: %w", cluster, err)
	}
	return toKubeconfig(response.GetKubeconfig()), nil
}

// Release confirms that a subscriber has finished its work on a draining cluster, which is disengaged when all
// subscribers that it waits for have released it. A repeated call is a no-op. It fails with [ErrPreconditionFailed] if
// the cluster is engaged and not draining, if it has another incarnation now, or if the daemon does not know the
// subscriber.
func (c *Client) Release(ctx context.Context, cluster Cluster, subscriber string) error {
	request := &pb.ReleaseClusterRequest{
		Cluster: cluster.Name, Incarnation: cluster.Incarnation, Subscriber: subscriber,
	}
	_, err := call(ctx, c, "ReleaseCluster", pb.DiscoveryServiceClient.ReleaseCluster, request)
	return err
}

// EndSubscription notifies the daemon that a subscriber has finished all its work, so that no draining cluster waits
// for it. Without this call, clusters whose drain began before its watch ended, or within a minute after, wait until
// their deadline.
func (c *Client) EndSubscription(ctx context.Context, subscriber string) error {
	request := &pb.EndSubscriptionRequest{Subscriber: subscriber}
	_, err := call(ctx, c, "EndSubscription", pb.DiscoveryServiceClient.EndSubscription, request)
	return err
}

var unfitForSubscriber = regexp.MustCompile(`[^A-Za-z0-9._-]`)

// NewSubscriber returns a unique name for WatchOptions.Subscriber: the hostname with a random suffix.
func NewSubscriber() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	host = unfitForSubscriber.ReplaceAllString(host, "-")
	return fmt.Sprintf("%.200s/%08x", host, rand.Uint32())
}

// call makes a unary call. If its connection is lost after earlier calls succeeded on it, call retries on a new
// connection, because the daemon may have restarted.
func call[Request, Response any](
	ctx context.Context,
	client *Client,
	name string,
	method func(pb.DiscoveryServiceClient, context.Context, *Request, ...grpc.CallOption) (*Response, error),
	request *Request,
) (*Response, error) {
	if client.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, client.timeout)
		defer cancel()
	}
	authorized, err := client.credentials.authorize(ctx)
	if err != nil {
		return nil, err
	}
	for {
		lane, err := client.calls.enter()
		if err != nil {
			return nil, err
		}
		response, err := method(pb.NewDiscoveryServiceClient(lane.conn), authorized, request)
		if err != nil {
			err = client.statusError(ctx, name, err)
		}
		retry := client.calls.leave(lane, err)
		switch {
		case err == nil:
			return response, nil
		case client.closed.Err() != nil:
			return nil, ErrClosed
		case !retry:
			return nil, err
		}
	}
}

// dial returns a new connection, with the current content of the certificate files.
func (c *Client) dial() (*grpc.ClientConn, error) {
	transport, err := c.credentials.transport()
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		// The daemon is on the same host or network: connect soon after it is up, and not through a proxy.
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithStatsHandler(&pacing{}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	}
	if c.credentials.ServerUID != nil {
		path := strings.TrimPrefix(c.target, socketScheme)
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := c.credentials.dialSocket(ctx, path)
			c.untrusted.Store(nil)
			if errors.Is(err, ErrUntrustedServer) {
				c.untrusted.Store(&err)
			}
			return conn, err
		}))
	}
	return grpc.NewClient(grpcTarget(c.target), append(options, c.dialOptions...)...)
}

// statusError converts a gRPC error. It adds the ErrUntrustedServer of a failed connection, which gRPC reports only as
// text.
func (c *Client) statusError(ctx context.Context, call string, err error) error {
	converted := statusError(ctx, call, err)
	var failed *StatusError
	if untrusted := c.untrusted.Load(); untrusted != nil && errors.As(converted, &failed) && failed.Code == codes.Unavailable {
		failed.causes = append(failed.causes, *untrusted)
	}
	return converted
}
