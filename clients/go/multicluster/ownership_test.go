package multicluster_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"google.golang.org/grpc/codes"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	"go.miloapis.com/discovery/multicluster"
)

func TestClustersAreDisengagedWhenTheOwnershipIsNotRenewed(t *testing.T) {
	w := newEnvironment(t)
	w.daemon.Shard(4 * time.Second)
	w.engage("alpha", "beta")
	provider := w.provider(nil)
	noted := w.startFeeding(provider)
	w.untilEngaged(noted, "alpha", "beta")
	lost := noted.context("alpha")
	ctx, end, ended := reconciling(provider, "alpha")
	defer end()
	w.daemon.Stop() // as one that is killed, it says nothing
	<-lost.Done()
	<-ctx.Done()
	var cause *multicluster.Disengaged
	for _, each := range []context.Context{lost, ctx} {
		if !errors.As(context.Cause(each), &cause) || cause.Reason != discovery.ReasonOwnershipLost {
			t.Errorf("the cause is %v", context.Cause(each))
		}
	}
	end()
	<-ended
	w.untilEngaged(noted)
	w.daemon.Start()
	w.untilEngaged(noted, "alpha", "beta")
	w.animal("alpha", "dog")
	w.untilFed("alpha", "dog")
}

func TestClustersOfASourceThatTheDaemonDoesNotKnowYetAreKept(t *testing.T) {
	w := newEnvironment(t)
	for name, source := range map[string]string{"x#alpha": "x", "x#beta": "x", "y#gamma": "y"} {
		w.daemon.Engage(discovery.Cluster{Name: name, Source: source, Endpoint: w.api.Endpoint("any")})
	}
	refused := make(chan struct{})
	refuse := sync.OnceFunc(func() { close(refused) })
	provider := w.provider(func(o *multicluster.Options) {
		o.Logger = funcr.New(func(_, line string) {
			if strings.Contains(line, "subscription refused") {
				refuse()
			}
		}, funcr.Options{})
	})
	noted := w.startNoting(provider)
	w.untilEngaged(noted, "x#alpha", "x#beta", "y#gamma")
	// The watch is rejected and reopened, at a daemon that knows only one of its sources.
	w.daemon.Fail("WatchClusters", discoverytest.Error(codes.PermissionDenied, "FORBIDDEN", "no rule for you"))
	w.daemon.BreakStreams(nil)
	<-refused
	w.daemon.Disengage("x#beta", discovery.ReasonDeleted)
	w.daemon.Disengage("y#gamma", discovery.ReasonDeleted)
	w.daemon.SetPendingSources("x")
	w.daemon.Fail("WatchClusters", nil)
	w.untilEngaged(noted, "x#alpha", "x#beta")
	w.daemon.SetPendingSources()
	w.untilEngaged(noted, "x#alpha")
	if noted.count() != 3 {
		t.Errorf("%d Engage calls, want 3", noted.count())
	}
}
