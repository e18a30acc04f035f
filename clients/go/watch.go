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
	heartbeatsMissed  = 3 // consecutive ones after which a stream is considered dead
)

// WatchOptions configure [Client.Watch]. The zero value watches all clusters, without kubeconfigs.
type WatchOptions struct {
	Filter
	// IncludeKubeconfigs asks for a kubeconfig with each engagement, and for another before it expires.
	IncludeKubeconfigs bool
	// KubeconfigTTL is the requested lifetime of these kubeconfigs; zero means the daemon's default. The daemon may
	// shorten it.
	KubeconfigTTL time.Duration
	// HeartbeatInterval is the interval of heartbeats on an idle stream; zero means 30 s. The daemon supports 1 s to 1
	// hour. A stream that is silent for three intervals is considered dead.
	HeartbeatInterval time.Duration
	// Subscriber makes planned disengagements wait until the cluster is released with [Client.Release] under this name,
	// which no other watch of the caller may have at the same time: see [NewSubscriber]. If empty, they do not wait.
	Subscriber string
	// Hooks observe the stream.
	Hooks Hooks
}

// Hooks are called with what happens to the stream of a watch, as opposed to the clusters. Each may be nil. They are
// called in order with the handler of the events, and never concurrently with it.
type Hooks struct {
	// Connected: the first batch of a stream arrived. With resumed, the stream continues from the last revision;
	// otherwise a snapshot follows, whose differences are reported before Synced is called again.
	Connected func(resumed bool)
	// Disconnected: the stream broke, and every cluster stays as it is; unless the error is an [ErrOwnershipLost], which
	// disengages all. It is called once for each loss, and not again for attempts that fail before the next Connected.
	Disconnected func(err error)
	// Synced: the events up to here make up a complete view of that many clusters. It is called for each snapshot.
	Synced func(clusters int)
	// Pending: the view that is complete with the next Synced lacks the clusters of these sources of the daemon, of which
	// the daemon has no complete list yet. Those reported before stay engaged. It is called before each Synced, with no
	// sources if nothing is missing.
	Pending func(sources []string)
	// Source: the daemon reported the state of its own view of Milo; with several sources, the worst
	// of their states. It does so in the first batch of a stream, with each heartbeat, and on changes.
	Source func(SourceStatus)
	// Sources: a daemon with several sources reported the state of each.
	Sources func([]SourceStatus)
	// KubeconfigRefused: a kubeconfig arrived that the daemon would not write (an [ErrUnusableKubeconfig]). Its event is
	// reported without it, or not at all if it had nothing else.
	KubeconfigRefused func(err error)
	// Received: a batch arrived, with or without events.
	Received func()
}

// Watch calls handle with the events of the clusters that match the options, until ctx is done, the client is closed,
// or an error is terminal (see [IsTerminal]). It reconnects by itself, and always returns an error: the cause of ctx,
// [ErrClosed], or the terminal one.
//
// Each call of handle has the events of one batch, or all differences that a snapshot makes; a replaced cluster is
// disengaged and engaged in the same call. Calls do not overlap, and nothing more is read before handle returns: the
// daemon then coalesces changes, and ends a stream that is not read for long (5 minutes by default), which is then
// resumed. Start work on clusters in goroutines of their own.
//
// A daemon of a shard group owns its clusters for a time that the watch renews. When that is not possible, all clusters
// are disengaged with [ReasonOwnershipLost] before another daemon engages them, and engaged again once the daemon owns
// them; a handle that does not return delays that. They are disengaged as well before the watch returns a terminal error,
// since it renews no longer.
//
// Each watch has a connection of its own. Watches of one client are independent of each other.
func (c *Client) Watch(ctx context.Context, options WatchOptions, handle func([]Event)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	keeper := newKeeper(ctx, c)
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
			continue // an ownership that ends from here on ends the next stream, and is handled then
		}
		if ctx.Err() == nil {
			watch.disown()
		}
		if owned, err = keeper.owned(); err != nil {
			return err
		}
	}
}

// sleep waits for a delay, or until ctx ends.
func sleep(ctx context.Context, delay time.Duration) {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// watch is one subscription, over as many streams as it takes.
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

// stream reads one stream, on a connection of its own, until it breaks, and returns why it did.
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
	// The deadline covers reading alone: a slow handler does not make the daemon silent.
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
		if err := w.take(batch); err != nil {
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

// take applies a batch and reports its events to the user.
func (w *watch) take(batch *pb.WatchClustersResponse) error {
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
	if events := w.events(result.Changes); len(events) > 0 {
		w.handle(events)
	}
	if result.Completed {
		notify(w.hooks.Pending, w.session.PendingSources())
		notify(w.hooks.Synced, w.session.Len())
	}
	return nil
}

// disown reports the disengagement of all clusters after the loss of the ownership.
func (w *watch) disown() {
	if events := w.events(w.session.LoseOwnership()); len(events) > 0 {
		w.handle(events)
	}
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

// lost reports a broken stream and returns how long to wait before the next.
func (w *watch) lost(err error, retries *retries) time.Duration {
	var ran, retryAfter time.Duration
	if !w.connectedAt.IsZero() {
		ran = time.Since(w.connectedAt)
	}
	var failed *StatusError
	if errors.As(err, &failed) {
		retryAfter = failed.RetryAfter
	}
	if errors.Is(err, ErrOwnershipLost) && w.session.Len() == 0 {
		err = errNotOwner // as at the start of a member: no cluster is lost
	}
	if !w.reportedDisconnected {
		w.reportedDisconnected = true
		notify(w.hooks.Disconnected, err)
	}
	return retries.failed(ran, retryAfter)
}

func notify[T any](hook func(T), value T) {
	if hook != nil {
		hook(value)
	}
}
