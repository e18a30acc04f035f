package discovery_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	pb "go.miloapis.com/discovery/v1"
)

// scriptedFleet is a fleet whose handlers report when they begin and are canceled, and return on command.
type scriptedFleet struct {
	daemon   *discoverytest.Daemon
	lines    chan string
	clusters map[string]*discovery.EngagedCluster
	finish   map[string]chan error // one for each engagement, as "name UID"
	result   chan error
	stop     context.CancelFunc
}

func runFleet(t *testing.T, options discovery.FleetOptions) *scriptedFleet {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	f := &scriptedFleet{
		daemon: discoverytest.New(t), lines: make(chan string, 100), result: make(chan error, 1), stop: stop,
		clusters: map[string]*discovery.EngagedCluster{}, finish: map[string]chan error{},
	}
	for _, of := range []string{"alpha", "beta"} {
		for number := range 3 {
			f.finish[fmt.Sprintf("%s uid-%s-%d", of, of, number+1)] = make(chan error, 10)
		}
	}
	options.OnError = func(of *discovery.EngagedCluster, err error) { f.lines <- fmt.Sprintf("error %s: %v", of.Name(), err) }
	options.Subscriber = "test/fleet"
	client := f.daemon.Client()
	go func() {
		f.result <- client.RunFleet(ctx, options, func(ctx context.Context, of *discovery.EngagedCluster) error {
			key := of.Name() + " " + of.Current().UID
			f.clusters[of.Name()] = of
			f.lines <- "begin " + key
			select {
			case err := <-f.finish[key]:
				f.lines <- "end " + key
				return err
			case <-ctx.Done():
			}
			f.lines <- fmt.Sprintf("signal %s: %v", key, context.Cause(ctx))
			err := <-f.finish[key]
			f.lines <- "end " + key
			return err
		})
	}()
	return f
}

// expect waits until all goroutines of the bubble are blocked, and compares the reports since the last call.
func (f *scriptedFleet) expect(t *testing.T, wanted ...string) {
	t.Helper()
	synctest.Wait()
	var got []string
	for len(f.lines) > 0 {
		got = append(got, <-f.lines)
	}
	if !slices.Equal(got, wanted) {
		t.Errorf("the fleet did %q, want %q", got, wanted)
	}
}

func (f *scriptedFleet) engage(t *testing.T) {
	t.Helper()
	f.daemon.Engage(discovery.Cluster{Name: "alpha"})
	f.expect(t, "begin alpha uid-alpha-1")
}

func (f *scriptedFleet) end(t *testing.T) {
	t.Helper()
	f.stop()
	for _, finish := range f.finish {
		finish <- nil
	}
	if err := <-f.result; !errors.Is(err, context.Canceled) {
		t.Errorf("the fleet ended with %v", err)
	}
}

func testFleet(t *testing.T, name string, options discovery.FleetOptions, test func(t *testing.T, f *scriptedFleet)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := runFleet(t, options)
			test(t, f)
			f.end(t)
		})
	})
}

func TestFleetRunsOneHandlerPerEngagement(t *testing.T) {
	none := discovery.FleetOptions{}
	testFleet(t, "handler of a replaced cluster ends before the next begins", none, func(t *testing.T, f *scriptedFleet) {
		f.engage(t)
		before := f.clusters["alpha"]
		f.daemon.Replace(discovery.Cluster{Name: "alpha"})
		f.expect(t, "signal alpha uid-alpha-1: cluster alpha was disengaged or is draining (REPLACED)")
		var cause *discovery.Disengaged
		if _, err := before.Kubeconfig(t.Context()); !errors.As(err, &cause) || cause.Reason != discovery.ReasonReplaced {
			t.Errorf("Kubeconfig() of the replaced cluster: error = %v, want Disengaged with reason REPLACED", err)
		}
		f.finish["alpha uid-alpha-1"] <- nil
		f.expect(t, "end alpha uid-alpha-1", "begin alpha uid-alpha-2")
	})
	testFleet(t, "engagements that end before their turn leave nothing", none, func(t *testing.T, f *scriptedFleet) {
		f.engage(t)
		f.daemon.Replace(discovery.Cluster{Name: "alpha"})
		f.expect(t, "signal alpha uid-alpha-1: cluster alpha was disengaged or is draining (REPLACED)")
		before := runtime.NumGoroutine()
		for range 200 {
			f.daemon.Replace(discovery.Cluster{Name: "alpha"})
		}
		f.expect(t)
		if more := runtime.NumGoroutine() - before; more > 20 {
			t.Errorf("200 engagements that ended before their turn left %d goroutines", more)
		}
		f.finish["alpha uid-alpha-202"] = make(chan error, 10)
		f.finish["alpha uid-alpha-1"] <- nil
		f.expect(t, "end alpha uid-alpha-1", "begin alpha uid-alpha-202")
	})
	testFleet(t, "handler keeps running during updates and restarts of the daemon", none, func(t *testing.T, f *scriptedFleet) {
		f.engage(t)
		cluster := f.clusters["alpha"]
		updated := cluster.Updated()
		f.daemon.Restart()
		f.daemon.Update("alpha", func(c *discovery.Cluster) { c.Endpoint = "https://moved.invalid" })
		<-updated
		if got := cluster.Current().Endpoint; got != "https://moved.invalid" {
			t.Errorf("got endpoint %s, want https://moved.invalid", got)
		}
		if _, err := cluster.Kubeconfig(t.Context()); err != nil {
			t.Errorf("Kubeconfig() after a restart of the daemon: error = %v, want a request for the new incarnation", err)
		}
		f.expect(t)
	})
	testFleet(t, "failing handler is called again after a backoff", none, func(t *testing.T, f *scriptedFleet) {
		f.engage(t)
		f.daemon.Engage(discovery.Cluster{Name: "beta"})
		f.expect(t, "begin beta uid-beta-1")
		f.finish["alpha uid-alpha-1"] <- errors.New("broken")
		f.expect(t, "end alpha uid-alpha-1", "error alpha: broken")
		time.Sleep(time.Second)
		f.expect(t, "begin alpha uid-alpha-1")
		f.finish["alpha uid-alpha-1"] <- nil
		time.Sleep(time.Hour)
		f.expect(t, "end alpha uid-alpha-1")
	})
	testFleet(t, "draining cluster is released after its handler returns, even with an error", none, func(t *testing.T, f *scriptedFleet) {
		f.engage(t)
		f.daemon.Drain("alpha", discovery.ReasonMoved)
		f.expect(t, "signal alpha uid-alpha-1: cluster alpha was disengaged or is draining (MOVED)")
		if f.daemon.Released("alpha", "test/fleet") {
			t.Error("the cluster was released while its handler was running")
		}
		if _, err := f.clusters["alpha"].Kubeconfig(t.Context()); err != nil {
			t.Errorf("Kubeconfig() of a draining cluster: error = %v, want none", err)
		}
		f.finish["alpha uid-alpha-1"] <- errors.New("broken")
		f.expect(t, "end alpha uid-alpha-1", "error alpha: broken")
		if report, err := f.daemon.Client().Get(t.Context(), "alpha"); err != nil || report.Engagement.Engaged {
			t.Errorf("got report %+v and error %v after the handler returned, want a disengaged cluster", report, err)
		}
	})
	testFleet(t, "release that fails is retried while the stream is open", none, func(t *testing.T, f *scriptedFleet) {
		f.engage(t)
		f.daemon.Fail("ReleaseCluster", discoverytest.Error(codes.ResourceExhausted, "TOO_MANY_CALLS", "busy"))
		f.daemon.Drain("alpha", discovery.ReasonMoved)
		f.expect(t, "signal alpha uid-alpha-1: cluster alpha was disengaged or is draining (MOVED)")
		f.finish["alpha uid-alpha-1"] <- nil
		f.expect(t, "end alpha uid-alpha-1")
		f.daemon.Fail("ReleaseCluster", nil)
		time.Sleep(10 * time.Second)
		if report, err := f.daemon.Client().Get(t.Context(), "alpha"); err != nil || report.Engagement.Engaged {
			t.Errorf("got report %+v and error %v after the retry, want a disengaged cluster", report, err)
		}
	})
	testFleet(t, "failing release does not delay the end of RunFleet", none, func(t *testing.T, f *scriptedFleet) {
		f.engage(t)
		f.daemon.Fail("ReleaseCluster", discoverytest.Error(codes.ResourceExhausted, "TOO_MANY_CALLS", "busy"))
		f.daemon.Drain("alpha", discovery.ReasonMoved)
		f.expect(t, "signal alpha uid-alpha-1: cluster alpha was disengaged or is draining (MOVED)")
		f.finish["alpha uid-alpha-1"] <- nil
		f.expect(t, "end alpha uid-alpha-1")
		time.Sleep(time.Minute)
		began := time.Now()
		f.end(t)
		if took := time.Since(began); took > 0 {
			t.Errorf("RunFleet ended after %v, want at once", took)
		}
		f.result <- context.Canceled
	})
	testFleet(t, "RunFleet waits for handlers, whose credentials stay valid", none, func(t *testing.T, f *scriptedFleet) {
		f.engage(t)
		cluster := f.clusters["alpha"]
		f.stop()
		f.expect(t, "signal alpha uid-alpha-1: context canceled")
		if _, err := cluster.Kubeconfig(t.Context()); err != nil || len(f.daemon.EndedSubscriptions()) > 0 {
			t.Errorf("Kubeconfig() during the cleanup: error = %v, ended subscriptions = %v; want none", err, f.daemon.EndedSubscriptions())
		}
		f.finish["alpha uid-alpha-1"] <- nil
		f.expect(t, "end alpha uid-alpha-1")
		if ended := f.daemon.EndedSubscriptions(); !slices.Equal(ended, []string{"test/fleet"}) {
			t.Errorf("got ended subscriptions %v, want only test/fleet", ended)
		}
		if _, err := cluster.Kubeconfig(t.Context()); !errors.Is(err, context.Canceled) {
			t.Errorf("Kubeconfig() after the end of the fleet: error = %v, want context.Canceled", err)
		}
	})
}

func TestFleetDoesNotWaitForAHungReleaseAtItsEnd(t *testing.T) {
	for name, timeout := range map[string]time.Duration{"default timeout": 0, "no timeout": -1} {
		inBubble(t, name, func(t *testing.T) {
			daemon := newScriptedDaemon(t)
			released := make(chan struct{})
			daemon.release = func(ctx context.Context) (*pb.ReleaseClusterResponse, error) {
				close(released)
				<-ctx.Done()
				return nil, ctx.Err()
			}
			client := daemon.clientWith(t, discovery.Options{Timeout: timeout})
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() {
				options := discovery.FleetOptions{OnError: func(*discovery.EngagedCluster, error) {}}
				ended <- client.RunFleet(ctx, options, func(ctx context.Context, _ *discovery.EngagedCluster) error {
					<-ctx.Done()
					return nil
				})
			}()
			drains := engaged("a")
			drains.Cluster.Draining = &pb.Draining{}
			daemon.begin(snapshot("1", drains))
			<-released
			begun := time.Now()
			stop()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the fleet ended with %v", err)
			}
			if waited := time.Since(begun); waited > 2*time.Second {
				t.Errorf("the fleet ended after %v, want at most 2s", waited)
			}
		})
	}
}

func TestEngagedClusterReturnsItsNewestKubeconfig(t *testing.T) {
	testFleet(t, "the kubeconfig is requested once, and refreshed in the background when it is due", discovery.FleetOptions{},
		func(t *testing.T, f *scriptedFleet) {
			f.engage(t)
			cluster := f.clusters["alpha"]
			get := func() *discovery.Kubeconfig {
				t.Helper()
				found, err := cluster.Kubeconfig(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				return found
			}
			first := get()
			if get() != first || f.daemon.Issued("alpha") != 1 {
				t.Errorf("%d kubeconfigs were issued, want 1", f.daemon.Issued("alpha"))
			}
			time.Sleep(time.Until(first.RefreshAfter))
			f.daemon.Fail("IssueKubeconfig", discoverytest.Error(codes.Unavailable, "ISSUER", "down"))
			if get() != first {
				t.Error("the valid kubeconfig was not used")
			}
			f.daemon.Fail("IssueKubeconfig", nil)
			time.Sleep(time.Second)
			get()
			if second := get(); second == first || f.daemon.Issued("alpha") != 2 {
				t.Errorf("%d kubeconfigs were issued, want 2", f.daemon.Issued("alpha"))
			}
		})
	testFleet(t, "requests back off while the issuer returns unusable kubeconfigs", discovery.FleetOptions{}, func(t *testing.T, f *scriptedFleet) {
		f.engage(t)
		f.daemon.SetKubeconfigs(func(c discovery.Cluster, _ int) discovery.Kubeconfig {
			return discovery.Kubeconfig{Content: []byte("refused")}
		})
		for range 600 {
			if _, err := f.clusters["alpha"].Kubeconfig(t.Context()); !errors.Is(err, discovery.ErrUnusableKubeconfig) {
				t.Fatalf("Kubeconfig() error = %v, want ErrUnusableKubeconfig", err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if issued := f.daemon.Issued("alpha"); issued > 10 {
			t.Errorf("%d requests in a minute, want at most 10", issued)
		}
	})
	for name, age := range map[string]time.Duration{"refresh": 40 * time.Minute, "expiry": 2 * time.Hour} {
		testFleet(t, "a kubeconfig past its "+name+" on arrival is not requested at each use", discovery.FleetOptions{},
			func(t *testing.T, f *scriptedFleet) { // as if the clock of this machine were ahead
				f.engage(t)
				f.daemon.SetKubeconfigs(func(discovery.Cluster, int) discovery.Kubeconfig {
					issued := time.Now().Add(-age)
					return discovery.Kubeconfig{
						Content: []byte(ofToken), IssuedAt: issued,
						RefreshAfter: issued.Add(30 * time.Minute), ExpiresAt: issued.Add(time.Hour),
					}
				})
				for range 600 {
					if found, err := f.clusters["alpha"].Kubeconfig(t.Context()); err != nil || found == nil {
						t.Fatalf("Kubeconfig() = %v, error = %v, want the last one", found, err)
					}
					time.Sleep(100 * time.Millisecond)
				}
				if issued := f.daemon.Issued("alpha"); issued > 14 {
					t.Errorf("%d requests in a minute, want at most 14: one in 5 s", issued)
				}
			})
	}
	testFleet(t, "a kubeconfig replaces one whose issue time is in the future", discovery.FleetOptions{},
		func(t *testing.T, f *scriptedFleet) {
			f.engage(t)
			ahead := time.Now().Add(2 * time.Hour)
			f.daemon.SetKubeconfigs(func(_ discovery.Cluster, number int) discovery.Kubeconfig {
				if number > 1 {
					return discovery.Kubeconfig{Content: []byte(ofToken)}
				}
				return discovery.Kubeconfig{Content: []byte(ofToken), IssuedAt: ahead, ExpiresAt: ahead.Add(-time.Hour)}
			})
			if _, err := f.clusters["alpha"].Kubeconfig(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			found, err := f.clusters["alpha"].Kubeconfig(t.Context())
			if err != nil || time.Until(found.ExpiresAt) <= 0 {
				t.Errorf("Kubeconfig() after the first one expired: %+v, error = %v, want a valid one", found, err)
			}
		})
	testFleet(t, "the kubeconfig is requested again after the endpoint changed", discovery.FleetOptions{}, func(t *testing.T, f *scriptedFleet) {
		f.engage(t)
		cluster := f.clusters["alpha"]
		if _, err := cluster.Kubeconfig(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.daemon.Update("alpha", func(c *discovery.Cluster) { c.Endpoint = "https://moved.invalid" })
		synctest.Wait()
		found, err := cluster.Kubeconfig(t.Context())
		if err != nil || !bytes.Contains(found.Content, []byte("https://moved.invalid")) {
			t.Errorf("Kubeconfig() = %s, error = %v, want one for https://moved.invalid", found.Content, err)
		}
	})
	pushed := discovery.FleetOptions{WatchOptions: discovery.WatchOptions{IncludeKubeconfigs: true}}
	testFleet(t, "the kubeconfig is the last one that the stream pushed", pushed, func(t *testing.T, f *scriptedFleet) {
		f.engage(t)
		for number := range 3 {
			found, err := f.clusters["alpha"].Kubeconfig(t.Context())
			if err != nil || f.daemon.Issued("alpha") != number+1 {
				t.Fatalf("kubeconfig %d: %v, %v; %d were issued, want %d", number, found, err, f.daemon.Issued("alpha"), number+1)
			}
			time.Sleep(time.Second)
			f.daemon.Rotate("alpha")
			synctest.Wait()
		}
	})
	inBubble(t, "a pushed kubeconfig is returned before a pending response", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		respond := make(chan struct{})
		daemon.issue = func() (*pb.IssueKubeconfigResponse, error) {
			<-respond
			return nil, discoverytest.Error(codes.Unavailable, "ISSUER", "down")
		}
		ctx, stop := context.WithCancel(t.Context())
		ended, found := make(chan error), make(chan *discovery.Kubeconfig)
		client := daemon.client(t)
		go func() {
			ended <- client.RunFleet(ctx, pushed, func(ctx context.Context, of *discovery.EngagedCluster) error {
				kubeconfig, err := of.Kubeconfig(ctx)
				if err != nil {
					t.Error(err)
				}
				found <- kubeconfig
				return nil
			})
		}()
		stream := daemon.begin(snapshot("1", engaged("a")))
		synctest.Wait()
		brought := engaged("a")
		brought.Type, brought.Kubeconfig = pb.ClusterEvent_TYPE_KUBECONFIG, &pb.Kubeconfig{Cluster: "a", Kubeconfig: []byte(ofToken)}
		stream.send(following("1", "2", brought))
		if kubeconfig := <-found; kubeconfig == nil || string(kubeconfig.Content) != ofToken {
			t.Errorf("got kubeconfig %v, want the pushed one", kubeconfig)
		}
		close(respond)
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the fleet ended with %v", err)
		}
	})
}

const ofToken = `{"apiVersion": "v1", "kind": "Config", "current-context": "a", "users": [{"name": "a", "user": {"token": "t"}}],
	"clusters": [{"name": "a", "cluster": {"server": "https://a"}}],
	"contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}]}`

func TestFleetSaysHowCurrentItIs(t *testing.T) {
	// begin runs a fleet whose handlers wait for the end of their clusters.
	begin := func(t *testing.T, prepare func(*discoverytest.Daemon)) (*discoverytest.Daemon, *discovery.Fleet) {
		t.Helper()
		daemon := discoverytest.New(t)
		prepare(daemon)
		fleet := daemon.Client().NewFleet(discovery.FleetOptions{})
		if state := fleet.State(); state.Synced || state.Connected || state.Problem != "not connected yet" {
			t.Errorf("before Run: %+v, want neither connected nor synced", state)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = fleet.Run(ctx, func(ctx context.Context, _ *discovery.EngagedCluster) error {
				<-ctx.Done()
				return nil
			})
		}()
		t.Cleanup(func() { stop(); <-ended })
		synctest.Wait()
		return daemon, fleet
	}
	names := func(fleet *discovery.Fleet) string {
		synctest.Wait()
		clusters := fleet.Clusters()
		found := make([]string, len(clusters))
		for i, cluster := range clusters {
			found[i] = cluster.Name()
		}
		return strings.Join(found, " ")
	}
	engaged := func(daemon *discoverytest.Daemon) {
		daemon.Engage(discovery.Cluster{Name: "alpha"}, discovery.Cluster{Name: "beta"})
	}

	inBubble(t, "a fleet that was not read is not synced", func(t *testing.T) {
		daemon, fleet := begin(t, func(d *discoverytest.Daemon) { engaged(d); d.SetSynced(false) })
		if state := fleet.State(); !state.Connected || state.Synced || names(fleet) != "" {
			t.Errorf("got %+v with clusters %q, want connected, not synced, and none", state, names(fleet))
		}
		daemon.SetSynced(true)
		if got := names(fleet); got != "alpha beta" || !fleet.State().Synced || !fleet.State().StaleSince.IsZero() {
			t.Errorf("got %+v with clusters %q, want synced with both", fleet.State(), got)
		}
	})
	inBubble(t, "a pending source is named", func(t *testing.T) {
		daemon, fleet := begin(t, func(d *discoverytest.Daemon) { engaged(d); d.SetPendingSources("eu") })
		if state := fleet.State(); !state.Synced || !slices.Equal(state.PendingSources, []string{"eu"}) {
			t.Errorf("got %+v, want synced with the pending source eu", state)
		}
		daemon.SetPendingSources()
		synctest.Wait()
		if state := fleet.State(); !state.Synced || len(state.PendingSources) > 0 {
			t.Errorf("got %+v, want no pending sources", state)
		}
	})
	inBubble(t, "a daemon that is away makes the fleet stale since its last message", func(t *testing.T) {
		daemon, fleet := begin(t, engaged)
		time.Sleep(40 * time.Second) // a heartbeat arrives each 30 s
		heard := time.Now().Add(-10 * time.Second)
		daemon.Stop()
		time.Sleep(time.Minute)
		if state := fleet.State(); state.Connected || !state.Synced || !state.StaleSince.Equal(heard) || state.Problem == "" {
			t.Errorf("got %+v, want synced, and stale since %v", state, heard)
		}
		daemon.SetSynced(false)
		daemon.Start()
		time.Sleep(time.Second)
		if state := fleet.State(); !state.Connected || !state.StaleSince.Equal(heard) || names(fleet) != "alpha beta" {
			t.Errorf("before the snapshot of the restarted daemon: %+v, want stale since %v", state, heard)
		}
		daemon.SetSynced(true)
		synctest.Wait()
		if state := fleet.State(); !state.StaleSince.IsZero() || state.Problem != "" {
			t.Errorf("after the snapshot: %+v, want current", state)
		}
	})
	inBubble(t, "a resumed stream makes the fleet current", func(t *testing.T) {
		daemon, fleet := begin(t, engaged)
		daemon.BreakStreams(nil)
		time.Sleep(time.Second)
		if state := fleet.State(); !state.Connected || !state.StaleSince.IsZero() {
			t.Errorf("got %+v, want current", state)
		}
	})
	inBubble(t, "a stale source makes the fleet stale since its last contact", func(t *testing.T) {
		daemon, fleet := begin(t, engaged)
		contact := time.Now().Add(-time.Minute).UTC()
		daemon.SetSource(discovery.SourceStatus{State: discovery.SourceStale, Since: time.Now(), LastContact: contact})
		synctest.Wait()
		if state := fleet.State(); !state.StaleSince.Equal(contact) || state.Source.State != discovery.SourceStale {
			t.Errorf("got %+v, want stale since %v", state, contact)
		}
	})
	inBubble(t, "lost ownership makes every cluster unknown, and not gone", func(t *testing.T) {
		daemon, fleet := begin(t, func(d *discoverytest.Daemon) { d.Shard(20 * time.Second); engaged(d) })
		daemon.Stop()
		time.Sleep(time.Minute)
		if state := fleet.State(); state.Connected || state.Problem == "" || state.Synced || !state.StaleSince.IsZero() || names(fleet) != "" {
			t.Errorf("got %+v with clusters %q, want not synced, and none", state, names(fleet))
		}
		daemon.Start()
		time.Sleep(time.Minute)
		if got := names(fleet); got != "alpha beta" || !fleet.State().Synced {
			t.Errorf("got %+v with clusters %q, want both", fleet.State(), got)
		}
	})
	inBubble(t, "clusters that drain or are disengaged are left", func(t *testing.T) {
		daemon, fleet := begin(t, engaged)
		daemon.Drain("alpha", discovery.ReasonLabelsChanged)
		if got := names(fleet); got != "beta" {
			t.Errorf("got clusters %q, want beta", got)
		}
		daemon.Disengage("beta", discovery.ReasonDeleted)
		if got := names(fleet); got != "" {
			t.Errorf("got clusters %q, want none", got)
		}
	})
	inBubble(t, "a fleet that has ended keeps its clusters, as stale", func(t *testing.T) {
		daemon, fleet := begin(t, engaged)
		daemon.BreakStreams(discoverytest.Error(codes.PermissionDenied, "FORBIDDEN", "no"))
		if got := names(fleet); got != "alpha beta" {
			t.Errorf("got clusters %q, want both", got)
		}
		if state := fleet.State(); state.Connected || state.StaleSince.IsZero() || !strings.Contains(state.Problem, "no") {
			t.Errorf("got %+v, want stale because of the error", state)
		}
	})
}
