package discovery

import (
	"context"
	"slices"
	"time"

	"go.miloapis.com/discovery/internal/session"
	pb "go.miloapis.com/discovery/v1"
)

const (
	singletonInterval = 3 * time.Second
	singletonEnd      = time.Second
)

// Singleton runs work that one replica does at a time, such as a cleanup, whenever the daemon grants it to this replica.
// The name of the work is the same in all replicas.
//
// The context of the work ends with the grant, also while the daemon does not answer. Another replica begins when the work
// has returned, or when the daemon stops waiting for it. Work that returns is not called again under the same grant.
//
// Singleton returns after the work has, when ctx is done, the client is closed, or an error is terminal (see
// [IsTerminal]). Its error is the cause of ctx, [ErrClosed], or the terminal one.
func (c *Client) Singleton(ctx context.Context, name string, work func(context.Context)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.closed, func() { cancel(ErrClosed) })()
	s := &singleton{client: c, subscriber: NewSubscriber(), name: name, work: work, cancel: func() {}}
	defer s.finish(ctx)
	for ctx.Err() == nil {
		if err := s.claim(ctx); err != nil && ctx.Err() == nil && IsTerminal(err) {
			return err
		}
		s.settle(ctx)
		sleep(ctx, s.pause())
		s.settle(ctx) // end work whose grant has expired before it is claimed again
	}
	return context.Cause(ctx)
}

// singleton is the work of one call of Singleton, under a subscriber of its own.
type singleton struct {
	client     *Client
	subscriber string
	name       string
	work       func(context.Context)

	granted bool
	until   time.Duration // when the grant expires, by the client's clock
	working bool          // it was begun under the present grant
	cancel  context.CancelFunc
	done    chan struct{} // closed when the work has returned; nil before it was first begun
}

func (s *singleton) left() time.Duration {
	if !s.granted {
		return 0
	}
	return max(0, s.until-s.client.clock.now())
}

// pause returns how long to wait before the next claim.
func (s *singleton) pause() time.Duration {
	if left := s.left(); left > 0 {
		return min(singletonInterval, left)
	}
	return singletonInterval
}

func (s *singleton) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return s.done == nil
	}
}

func (s *singleton) state() pb.SingletonClaim_State {
	switch {
	case s.granted:
		return pb.SingletonClaim_STATE_WORKING
	case s.ended():
		return pb.SingletonClaim_STATE_WAITING
	default:
		return pb.SingletonClaim_STATE_ENDING
	}
}

// claim claims the work. A failure leaves the last grant to expire.
func (s *singleton) claim(ctx context.Context) error {
	asked := s.client.clock.now()
	ctx, cancel := context.WithTimeout(ctx, s.pause())
	defer cancel()
	response, err := call(ctx, s.client, "ClaimSingletons", pb.DiscoveryServiceClient.ClaimSingletons,
		&pb.ClaimSingletonsRequest{
			Subscriber: s.subscriber,
			Claims:     []*pb.SingletonClaim{{Name: s.name, State: s.state()}},
		})
	if err != nil {
		return err
	}
	s.granted = slices.Contains(response.GetGranted(), s.name)
	s.until = session.Expiry(response.GetValidFor(), asked)
	return nil
}

// settle starts the work if it is granted, or else signals it to end.
func (s *singleton) settle(ctx context.Context) {
	s.granted = s.left() > 0
	switch {
	case !s.granted:
		s.working = false
		s.cancel()
	case !s.working && s.ended() && ctx.Err() == nil:
		s.working = true
		var work context.Context
		work, s.cancel = context.WithCancel(ctx)
		done := make(chan struct{})
		s.done = done
		go func() {
			defer close(done)
			s.work(work)
		}()
	}
}

// finish waits for the work to return, and notifies the daemon, which otherwise detects the end later.
func (s *singleton) finish(ctx context.Context) {
	s.cancel()
	if s.done != nil {
		<-s.done
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), singletonEnd)
	defer cancel()
	_ = s.client.EndSubscription(ctx, s.subscriber)
}
