package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"go.miloapis.com/discovery/internal/session"
	pb "go.miloapis.com/discovery/v1"
)

const (
	defaultHeartbeat  = 30 * time.Second
	shortestHeartbeat = time.Second
	longestHeartbeat  = time.Hour
	heartbeatsMissed  = 3 // number of missed heartbeats after which a stream is considered dead
)

// WatchOptions configures [Client.Watch]. The zero value watches all clusters, without kubeconfigs.
type WatchOptions struct {
	Filter
	// IncludeKubeconfigs requests a kubeconfig with each engagement, and a new one before it expires.
	IncludeKubeconfigs bool
	// KubeconfigTTL is the requested lifetime of these kubeconfigs; zero means the daemon's default. The daemon may
	// shorten it.
	KubeconfigTTL time.Duration
	// HeartbeatInterval is the interval of heartbeats on an idle stream; zero means 30 s. The daemon supports 1 s to 1
	// hour. A stream without a message for three intervals is considered dead.
	HeartbeatInterval time.Duration
	// Subscriber is the name under which draining clusters of the watch are released with [Client.Release]. No other watch
	// of the caller may have it at the same time: see [NewSubscriber]. If empty, planned disengagements do not wait for
	// this watch.
	Subscriber string
	// Hooks observe the stream.
	Hooks Hooks
}

// Hooks are called when the state of a watch's stream changes, as opposed to its clusters. Each may be nil. They are
// called in order with the event handler, and never concurrently with it.
type Hooks struct {
	// Connected is called when the first batch of a stream arrives. If resumed, the stream continues from the last
	// revision; otherwise a snapshot follows, whose differences are reported before Synced is called.
	Connected func(resumed bool)
	// Disconnected is called when the stream breaks, or the first one cannot be opened, and the watch retries. It is not
	// called again for failed attempts to reconnect. All clusters stay engaged, until the ownership of a sharded daemon
	// expires.
	Disconnected func(err error)
	// Synced is called after the events of each complete snapshot, with the number of clusters in the view.
	Synced func(clusters int)
	// Pending is called before each Synced, with the sources of which the daemon has no complete list yet, if any. The
	// snapshot lacks their clusters; clusters that were reported before stay engaged.
	Pending func(sources []string)
	// Source is called with the status of the daemon's view of Milo; with several sources, that of the least current one.
	// The daemon sends it in the first batch of a stream, with each heartbeat, and on changes.
	Source func(SourceStatus)
	// Sources is called with the status of each source, if the daemon has several.
	Sources func([]SourceStatus)
	// KubeconfigRefused is called with [ErrUnusableKubeconfig] when a kubeconfig arrives that the daemon would not write.
	// Its event is reported without the kubeconfig, or not at all if it contains nothing else.
	KubeconfigRefused func(err error)
	// Received is called for each batch, with or without events.
	Received func()
}

// Watch calls handle with the events of the clusters that match the options, until ctx is done, the client is closed,
// or an error is terminal (see [IsTerminal]). It reconnects automatically, and always returns an error: the cause of
// ctx, [ErrClosed], or the terminal error.
//
// Each call of handle gets the events of one batch, or all differences of a snapshot; a replaced cluster is disengaged
// and engaged in the same call. Calls do not overlap, and no further batch is read before handle returns. Meanwhile the
// daemon coalesces changes. It closes a stream that is not read for long (5 minutes by default), which is then resumed.
// Start work on clusters in separate goroutines.
//
// A daemon of a shard group owns its clusters for a limited time, which the watch renews. If that fails, all clusters
// are disengaged with [ReasonOwnershipLost] before another daemon engages them, and engaged again once the daemon owns
// them. A handle that does not return delays the disengagement. The clusters of such a daemon are also disengaged
// before the watch returns a terminal error, since the ownership is not renewed afterwards.
//
// Each watch has its own connection. Watches of one client are independent of each other.
func (c *Client) Watch(ctx context.Context, options WatchOptions, handle func([]Event)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	keeper := newKeeper(ctx, c, options.Subscriber)
	defer func() { cancel(nil); keeper.wait() }()
	defer context.AfterFunc(c.closed, func() { cancel(ErrClosed) })()
	heartbeat := cmp.Or(options.HeartbeatInterval, defaultHeartbeat)
	watch := watch{
		client: c,
		request: &pb.WatchClustersRequest{
			Filter:             fromFilter(options.Filter),
			IncludeKubeconfigs: options.IncludeKubeconfigs,
			KubeconfigTtl:      fromSpan(options.KubeconfigTTL),
			HeartbeatInterval:  durationpb.New(heartbeat),
			ConfirmReleases:    options.Subscriber != "",
			Subscriber:         options.Subscriber,

			AcceptsPendingSources: true,
		},
		keeper:  keeper,
		silence: heartbeatsMissed * min(max(heartbeat, shortestHeartbeat), longestHeartbeat),
		hooks:   options.Hooks,
		handle:  handle,
	}
	retries := retries{policy: c.backoff, draw: rand.Float64}
	owned, err := keeper.owned()
	if err != nil {
		return err
	}
	for {
		err := watch.stream(owned)
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if IsTerminal(err) {
			if keeper.sharded() {
				watch.disown()
			}
			return err
		}
		sleep(owned, watch.lost(err, &retries))
		if owned.Err() == nil {
			continue // if the ownership expires after this check, the next stream fails, and the loss is handled then
		}
		if ctx.Err() == nil {
			watch.disown()
		}
		if owned, err = keeper.owned(); err != nil {
			return err
		}
	}
}

// sleep waits for a delay, or until ctx is done.
func sleep(ctx context.Context, delay time.Duration) {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// watch is one subscription, which outlives its streams.
type watch struct {
	client  *Client
	request *pb.WatchClustersRequest
	keeper  *keeper
	silence time.Duration
	hooks   Hooks
	handle  func([]Event)

	session              session.Session
	connectedAt          time.Time // zero: no batch has arrived on the current stream
	reportedDisconnected bool
}

// stream opens a stream on a new connection and reads it until it breaks. It returns the error.
func (w *watch) stream(ctx context.Context) error {
	w.connectedAt = time.Time{}
	conn, err := w.client.dial()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, err = w.client.credentials.authorize(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := fmt.Errorf("%w: no heartbeat for %v", ErrStreamBroken, w.silence)
	// The heartbeat timeout covers only reads, and not the time that the handler takes.
	deadline := time.AfterFunc(w.silence, func() { cancel(silent) })
	defer deadline.Stop()
	w.request.ResumeRevision = w.session.Open()
	stream, err := pb.NewDiscoveryServiceClient(conn).WatchClusters(ctx, w.request)
	if err != nil {
		return w.broken(ctx, err, silent)
	}
	for {
		batch, err := stream.Recv()
		if err != nil {
			return w.broken(ctx, err, silent)
		}
		deadline.Stop()
		if batch.GetSharded() {
			w.keeper.share()
		}
		if len(batch.GetEvents()) > 0 && !w.keeper.held() {
			return errNotOwner
		}
		if err := w.applyBatch(batch); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		deadline.Reset(w.silence)
	}
}

func (w *watch) broken(ctx context.Context, err, silent error) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, silent), errors.Is(cause, ErrOwnershipLost):
		return cause
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: the daemon ended the stream", ErrStreamBroken)
	}
	return w.client.statusError(ctx, "WatchClusters", err)
}

// applyBatch applies a batch, and calls the hooks and the handler.
func (w *watch) applyBatch(batch *pb.WatchClustersResponse) error {
	result, err := w.session.Receive(batch)
	if err != nil {
		return err
	}
	if w.connectedAt.IsZero() {
		w.connectedAt, w.reportedDisconnected = time.Now(), false
		notify(w.hooks.Connected, batch.GetSynced() && !batch.GetReset_())
	}
	if w.hooks.Received != nil {
		w.hooks.Received()
	}
	if batch.GetSource() != nil {
		notify(w.hooks.Source, toSource(batch.GetSource()))
	}
	if len(batch.GetSources()) > 0 {
		notify(w.hooks.Sources, convert(batch.GetSources(), toSource))
	}
	w.keeper.holds.Store(w.session.Len() > 0)
	if events := w.events(result.Changes); len(events) > 0 {
		w.handle(events)
	}
	if result.Completed {
		notify(w.hooks.Pending, w.session.PendingSources())
		notify(w.hooks.Synced, w.session.Len())
	}
	return nil
}

// disown reports all clusters as disengaged, because the ownership is lost, or will not be renewed after a terminal
// error.
func (w *watch) disown() {
	if events := w.events(w.session.LoseOwnership()); len(events) > 0 {
		w.handle(events)
	}
	w.keeper.holds.Store(false)
}

// events converts changes to events, and omits kubeconfigs that are not of the form that the daemon writes.
func (w *watch) events(changes []session.Change) []Event {
	events := make([]Event, 0, len(changes))
	for _, change := range changes {
		event := toEvent(change)
		if event.Kubeconfig != nil {
			if err := checkKubeconfig(event.Kubeconfig.Content, FormatEmbedded, event.Cluster.Name); err != nil {
				notify(w.hooks.KubeconfigRefused, fmt.Errorf("cluster %q: %w", event.Cluster.Name, err))
				event.Kubeconfig = nil
			}
		}
		if event.Type != EventKubeconfig || event.Kubeconfig != nil {
			events = append(events, event)
		}
	}
	return events
}

// lost reports a broken stream, and returns the delay before the next one.
func (w *watch) lost(err error, retries *retries) time.Duration {
	var ran time.Duration
	if !w.connectedAt.IsZero() {
		ran = time.Since(w.connectedAt)
	}
	delay := retries.failed(ran, retryAfter(err))
	if errors.Is(err, ErrOwnershipLost) && w.session.Len() == 0 {
		err = errNotOwner // no cluster is lost, for example when a member of a shard group starts
	}
	if !w.reportedDisconnected {
		w.reportedDisconnected = true
		notify(w.hooks.Disconnected, err)
	}
	return delay
}

func notify[T any](hook func(T), value T) {
	if hook != nil {
		hook(value)
	}
}
