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

func TestClustersAreDisengagedWhenOwnershipExpires(t *testing.T) {
	env := newEnvironment(t)
	env.daemon.Shard(4 * time.Second)
	env.engage("alpha", "beta")
	provider := env.provider(nil)
	noted := env.startFeeding(provider)
	env.untilEngaged(noted, "alpha", "beta")
	lost := noted.context("alpha")
	ctx, end, ended := reconciling(t.Context(), provider, "alpha")
	defer end()
	env.daemon.Stop() // like a killed daemon, it sends no disengagements
	<-lost.Done()
	<-ctx.Done()
	var cause *multicluster.Disengaged
	for _, each := range []context.Context{lost, ctx} {
		if !errors.As(context.Cause(each), &cause) || cause.Reason != discovery.ReasonOwnershipLost {
			t.Errorf("the cancellation cause is %v, want OWNERSHIP_LOST", context.Cause(each))
		}
	}
	end()
	<-ended
	env.untilEngaged(noted)
	env.daemon.Start()
	env.untilEngaged(noted, "alpha", "beta")
	env.animal("alpha", "dog")
	env.untilFed("alpha", "dog")
}

func TestClustersOfPendingSourceAreKept(t *testing.T) {
	env := newEnvironment(t)
	for name, source := range map[string]string{"x#alpha": "x", "x#beta": "x", "y#gamma": "y"} {
		env.daemon.Engage(discovery.Cluster{Name: name, Source: source, Endpoint: env.api.Endpoint("any")})
	}
	refused := make(chan struct{})
	refuse := sync.OnceFunc(func() { close(refused) })
	provider := env.provider(func(o *multicluster.Options) {
		o.Logger = funcr.New(func(_, line string) {
			if strings.Contains(line, "subscription refused") {
				refuse()
			}
		}, funcr.Options{})
	})
	noted := env.startNoting(provider)
	env.untilEngaged(noted, "x#alpha", "x#beta", "y#gamma")
	// The watch is rejected and reopened, at a daemon that has listed only one of its two sources.
	env.daemon.Fail("WatchClusters", discoverytest.Error(codes.PermissionDenied, "FORBIDDEN", "no rule for you"))
	env.daemon.BreakStreams(nil)
	<-refused
	env.daemon.Disengage("x#beta", discovery.ReasonDeleted)
	env.daemon.Disengage("y#gamma", discovery.ReasonDeleted)
	env.daemon.SetPendingSources("x")
	env.daemon.Fail("WatchClusters", nil)
	env.untilEngaged(noted, "x#alpha", "x#beta")
	env.daemon.SetPendingSources()
	env.untilEngaged(noted, "x#alpha")
	if noted.count() != 3 {
		t.Errorf("%d Engage calls, want 3", noted.count())
	}
}
