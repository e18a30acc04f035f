package discovery_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	pb "go.miloapis.com/discovery/v1"
)

// replica is a program that does singleton work.
type replica struct {
	began, ended chan time.Time
	mayEnd       chan struct{}
	stop         context.CancelFunc
	result       chan error
}

func newReplica(t *testing.T, client *discovery.Client) *replica {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	r := &replica{
		began: make(chan time.Time, 9), ended: make(chan time.Time, 9), mayEnd: make(chan struct{}), stop: stop,
		result: make(chan error, 1),
	}
	go func() {
		r.result <- client.Singleton(ctx, "cleanup", func(ctx context.Context) {
			r.began <- time.Now()
			<-ctx.Done()
			r.ended <- time.Now()
			<-r.mayEnd
		})
	}()
	t.Cleanup(stop)
	return r
}

func TestSingleton(t *testing.T) {
	inBubble(t, "runs while it is granted", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.GrantSingletons(10 * time.Second)
		r := newReplica(t, daemon.Client())
		<-r.began
		time.Sleep(time.Minute)
		if len(r.began)+len(r.ended) > 0 {
			t.Error("the work was begun or ended again")
		}
		if claim := daemon.LastClaim(); claim.GetName() != "cleanup" || claim.GetState() != pb.SingletonClaim_STATE_WORKING {
			t.Errorf("the last claim is %v", claim)
		}
		close(r.mayEnd)
		r.stop()
		if err := <-r.result; !errors.Is(err, context.Canceled) {
			t.Errorf("it ends with %v", err)
		}
		if len(daemon.EndedSubscriptions()) != 1 {
			t.Error("the daemon is not told that the work has ended")
		}
	})

	inBubble(t, "that is no longer granted ends, and is claimed again when it has", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.GrantSingletons(10 * time.Second)
		r := newReplica(t, daemon.Client())
		<-r.began
		daemon.GrantSingletons(0)
		<-r.ended
		time.Sleep(10 * time.Second)
		if state := daemon.LastClaim().GetState(); state != pb.SingletonClaim_STATE_ENDING {
			t.Errorf("the claim of work that has not returned is %v", state)
		}
		close(r.mayEnd)
		time.Sleep(10 * time.Second)
		if state := daemon.LastClaim().GetState(); state != pb.SingletonClaim_STATE_WAITING {
			t.Errorf("the claim of work that has returned is %v", state)
		}
		daemon.GrantSingletons(10 * time.Second)
		<-r.began
	})

	inBubble(t, "ends with its grant while the daemon does not answer", func(t *testing.T) {
		for name, fail := range map[string]func(*discoverytest.Daemon){
			"it was killed":      func(d *discoverytest.Daemon) { d.Stop() },
			"it fails the calls": func(d *discoverytest.Daemon) { d.Fail("ClaimSingletons", silent) },
		} {
			daemon := discoverytest.New(t)
			daemon.GrantSingletons(10 * time.Second)
			r := newReplica(t, daemon.Client())
			close(r.mayEnd)
			<-r.began
			lost := time.Now()
			fail(daemon)
			if took := (<-r.ended).Sub(lost); took < 6*time.Second || took > 11*time.Second {
				t.Errorf("%s: the work ends after %v", name, took)
			}
			r.stop()
			<-r.result
		}
	})

	inBubble(t, "is not granted for a missing, negative or invalid time", func(t *testing.T) {
		for _, validFor := range []*durationpb.Duration{
			nil, {Seconds: -10}, {Seconds: math.MaxInt64}, {Seconds: math.MinInt64}, {Seconds: 10, Nanos: 2e9},
		} {
			daemon := newScriptedDaemon(t)
			daemon.claim = func() (*pb.ClaimSingletonsResponse, error) {
				return &pb.ClaimSingletonsResponse{Granted: []string{"cleanup"}, ValidFor: validFor}, nil
			}
			r := newReplica(t, daemon.client(t))
			close(r.mayEnd)
			time.Sleep(10 * time.Second)
			if len(r.began) > 0 {
				t.Errorf("the work was begun with %v", validFor)
			}
			r.stop()
			<-r.result
		}
	})

	inBubble(t, "that returns is not begun again under the same grant", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.GrantSingletons(10 * time.Second)
		calls := make(chan struct{}, 9)
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		err := daemon.Client().Singleton(ctx, "cleanup", func(context.Context) { calls <- struct{}{} })
		if len(calls) != 1 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%d calls, %v", len(calls), err)
		}
	})

	inBubble(t, "is refused for good by a terminal error, and by a closed client", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Fail("ClaimSingletons", discoverytest.Error(codes.PermissionDenied, "FORBIDDEN", "no"))
		idle := func(context.Context) {}
		if err := daemon.Client().Singleton(t.Context(), "cleanup", idle); !errors.Is(err, discovery.ErrPermissionDenied) {
			t.Errorf("it ends with %v", err)
		}
		client := daemon.Client()
		_ = client.Close()
		if err := client.Singleton(t.Context(), "cleanup", idle); !errors.Is(err, discovery.ErrClosed) {
			t.Errorf("it ends with %v", err)
		}
	})
}
