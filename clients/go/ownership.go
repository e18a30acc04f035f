package discovery

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.miloapis.com/discovery/internal/session"
	pb "go.miloapis.com/discovery/v1"
)

var errNotOwner = fmt.Errorf("%w: the daemon's ownership of its clusters has expired or is not confirmed", ErrStreamBroken)

// keeper renews the ownership of a sharded daemon, concurrently with the stream and even while the stream is broken.
type keeper struct {
	ctx        context.Context
	client     *Client
	subscriber string      // releases the clusters; "" if releases are not confirmed
	holds      atomic.Bool // whether the watch has clusters
	running    sync.WaitGroup

	mutex     sync.Mutex
	ownership session.Ownership
	renewing  bool
	term      context.Context // canceled with ErrOwnershipLost when the ownership expires
	end       context.CancelCauseFunc
	begun     chan struct{} // closed when the next term begins
}

func newKeeper(ctx context.Context, client *Client, subscriber string) *keeper {
	k := &keeper{ctx: ctx, client: client, subscriber: subscriber, begun: make(chan struct{})}
	k.term, k.end = context.WithCancelCause(ctx)
	return k
}

// wait waits for the renewals to stop. Cancel the context first.
func (k *keeper) wait() { k.running.Wait() }

// owned waits until the daemon owns its clusters, and returns a context that is canceled when it no longer does.
func (k *keeper) owned() (context.Context, error) {
	for {
		k.mutex.Lock()
		term, begun := k.term, k.begun
		k.mutex.Unlock()
		if term.Err() == nil {
			return term, nil
		}
		select {
		case <-begun:
		case <-k.ctx.Done():
			return nil, context.Cause(k.ctx)
		}
	}
}

func (k *keeper) held() bool {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return k.ownership.Held(k.client.clock.now())
}

func (k *keeper) sharded() bool {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return k.ownership.Sharded()
}

// share records that the daemon is a member of a shard group. The first call returns after the first attempt to renew
// the ownership.
func (k *keeper) share() {
	k.mutex.Lock()
	known := k.renewing
	k.renewing = true
	k.ownership.Share()
	k.mutex.Unlock()
	if !known {
		k.renew(k.client.clock.now())
		k.running.Add(1)
		go k.keep()
	}
}

// keep renews the ownership until the daemon is no longer sharded, or the context is done.
func (k *keeper) keep() {
	defer k.running.Done()
	for k.ctx.Err() == nil && k.settle() {
		sleep(k.ctx, k.nextRenewal())
		asked := k.client.clock.now() // before the check: if the machine is suspended after it, the response must not cover that time
		k.settle()                    // ownership that has expired is lost, even if it can be renewed
		k.renew(asked)
	}
}

// settle ends the term if the ownership has expired, and begins a new term if it is held again. It reports whether the
// daemon is still sharded.
func (k *keeper) settle() bool {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	switch held := k.ownership.Held(k.client.clock.now()); {
	case !held:
		k.end(ErrOwnershipLost)
	case k.term.Err() != nil:
		k.term, k.end = context.WithCancelCause(k.ctx)
		close(k.begun)
		k.begun = make(chan struct{})
	}
	k.renewing = k.ownership.Sharded()
	return k.renewing
}

func (k *keeper) nextRenewal() time.Duration {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return k.ownership.NextRenewal(k.client.clock.now(), k.term.Err() == nil)
}

// renew requests how long the daemon owns its clusters. After a failure, the last response applies until it expires.
func (k *keeper) renew(asked time.Duration) {
	k.mutex.Lock()
	timeout := k.ownership.Timeout(asked)
	k.mutex.Unlock()
	ctx, cancel := context.WithTimeout(k.ctx, timeout)
	defer cancel()
	request := &pb.RenewOwnershipRequest{}
	if k.holds.Load() {
		request.Subscriber = k.subscriber
	}
	response, err := call(ctx, k.client, "RenewOwnership", pb.DiscoveryServiceClient.RenewOwnership, request)
	if err != nil {
		return
	}
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.ownership.Renewed(response, asked)
}
