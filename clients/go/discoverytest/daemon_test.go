package discoverytest_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
)

// events starts a watch and returns a channel of its events, as one string per batch.
func events(t *testing.T, daemon *discoverytest.Daemon, options discovery.WatchOptions) <-chan string {
	t.Helper()
	reported := make(chan string, 1000)
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	t.Cleanup(func() { stop(); watching.Wait() })
	client := daemon.Client()
	watching.Go(func() {
		_ = client.Watch(ctx, options, func(events []discovery.Event) {
			words := make([]string, 0, len(events))
			for _, event := range events {
				word := fmt.Sprintf("%s %s", event.Type, event.Cluster.Name)
				if event.Reason != "" {
					word += " " + string(event.Reason)
				}
				if event.Kubeconfig != nil {
					word += " " + string(token.FindSubmatch(event.Kubeconfig.Content)[1])
				}
				words = append(words, word)
			}
			reported <- strings.Join(words, ", ")
		})
	})
	return reported
}

func expect(t *testing.T, reported <-chan string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if got := <-reported; got != want {
			t.Fatalf("the watch reports %q, want %q", got, want)
		}
	}
}

func named(cluster discovery.Cluster, number int) discovery.Kubeconfig {
	return discovery.Kubeconfig{Content: fmt.Appendf(nil, `{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": %q}}],
		"users": [{"name": "u", "user": {"token": "%s#%d"}}]}`, cluster.Endpoint, cluster.Name, number)}
}

var token = regexp.MustCompile(`"token": "(.*)"`)

func TestFakeDaemonFollowsTheProtocol(t *testing.T) {
	for name, test := range map[string]func(*testing.T, *discoverytest.Daemon){
		"a drain waits for subscribers that confirm releases": func(t *testing.T, daemon *discoverytest.Daemon) {
			daemon.Engage(discovery.Cluster{Name: "a"})
			confirming := events(t, daemon, discovery.WatchOptions{Subscriber: "s"})
			other := events(t, daemon, discovery.WatchOptions{})
			expect(t, confirming, "ENGAGED a")
			expect(t, other, "ENGAGED a")
			client := daemon.Client()
			if err := client.Release(t.Context(), daemon.Cluster("a"), "s"); !errors.Is(err, discovery.ErrPreconditionFailed) {
				t.Errorf("Release() of a cluster that is not draining: error = %v, want ErrPreconditionFailed", err)
			}
			daemon.Drain("a", discovery.ReasonMoved)
			expect(t, confirming, "UPDATED a")
			expect(t, other, "DISENGAGED a MOVED")
			draining := daemon.Cluster("a")
			if draining.Draining.Reason != discovery.ReasonMoved || daemon.Released("a", "s") {
				t.Errorf("got %+v and Released() = %v, want reason MOVED and false", draining.Draining, daemon.Released("a", "s"))
			}
			expect(t, events(t, daemon, discovery.WatchOptions{Subscriber: "s"}), "ENGAGED a")
			stale := draining
			stale.Incarnation = "stale"
			if err := client.Release(t.Context(), stale, "s"); !errors.Is(err, discovery.ErrPreconditionFailed) {
				t.Errorf("Release() of another incarnation: error = %v, want ErrPreconditionFailed", err)
			}
			for range 2 { // the second call is a no-op
				if err := client.Release(t.Context(), draining, "s"); err != nil {
					t.Fatal(err)
				}
			}
			expect(t, confirming, "DISENGAGED a MOVED")
			if err := client.EndSubscription(t.Context(), "s"); err != nil || !slices.Equal(daemon.EndedSubscriptions(), []string{"s"}) {
				t.Errorf("EndSubscription(): error = %v, ended = %v; want only s", err, daemon.EndedSubscriptions())
			}
		},
		"changes of one Batch arrive as one batch": func(t *testing.T, daemon *discoverytest.Daemon) {
			daemon.Engage(discovery.Cluster{Name: "a"}, discovery.Cluster{Name: "b"})
			reported := events(t, daemon, discovery.WatchOptions{})
			expect(t, reported, "ENGAGED a, ENGAGED b")
			daemon.Batch(func(changes *discoverytest.Changes) {
				changes.Disengage("a", discovery.ReasonUnspecified)
				changes.Update("b", func(cluster *discovery.Cluster) {
					cluster.Connectivity.State = discovery.ConnectivityUnreachable
				})
				changes.Rotate("b")
			})
			expect(t, reported, "DISENGAGED a, UPDATED b")
			if state := daemon.Cluster("b").Connectivity.State; state != discovery.ConnectivityUnreachable {
				t.Errorf("got connectivity %q, want UNREACHABLE", state)
			}
		},
		"a project keeps its UID until it is deleted": func(t *testing.T, daemon *discoverytest.Daemon) {
			uids := make([]string, 0, 4)
			for _, reason := range []discovery.DisengageReason{
				discovery.ReasonNotReady, discovery.ReasonDeleted, discovery.ReasonReplaced,
			} {
				daemon.Engage(discovery.Cluster{Name: "a"})
				uids = append(uids, daemon.Cluster("a").UID)
				daemon.Disengage("a", reason)
			}
			daemon.Engage(discovery.Cluster{Name: "a", UID: "given"})
			uids = append(uids, daemon.Cluster("a").UID)
			if got := strings.Join(uids, " "); got != "uid-a-1 uid-a-1 uid-a-2 given" {
				t.Errorf("got UIDs %s, want uid-a-1 uid-a-1 uid-a-2 given", got)
			}
		},
		"the explanation of a cluster that its source removed has the reason REMOVED": func(t *testing.T, daemon *discoverytest.Daemon) {
			daemon.Engage(discovery.Cluster{Name: "a"})
			daemon.Disengage("a", discovery.ReasonRemoved)
			report, err := daemon.Client().Get(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			if report.Engagement.Reason != "REMOVED" {
				t.Errorf("got reason %q, want REMOVED", report.Engagement.Reason)
			}
		},
		"SetKubeconfigs sets the content of kubeconfigs": func(t *testing.T, daemon *discoverytest.Daemon) {
			daemon.SetKubeconfigs(named)
			daemon.Engage(discovery.Cluster{Name: "a"})
			reported := events(t, daemon, discovery.WatchOptions{IncludeKubeconfigs: true})
			expect(t, reported, "ENGAGED a a#1")
			daemon.Rotate("a")
			expect(t, reported, "KUBECONFIG a a#2")
			daemon.Engage(discovery.Cluster{Name: "b"})
			expect(t, reported, "ENGAGED b b#1")
			daemon.Restart()
			expect(t, reported, "REFRESHED a, KUBECONFIG a a#3, REFRESHED b, KUBECONFIG b b#2")
		},
		"streams that replay a past engagement get no kubeconfig": func(t *testing.T, daemon *discoverytest.Daemon) {
			reported := events(t, daemon, discovery.WatchOptions{IncludeKubeconfigs: true})
			daemon.WaitForStreams(1)
			daemon.SetSilent(true)
			daemon.SetKubeconfigs(named)
			daemon.Engage(discovery.Cluster{Name: "a"})
			daemon.Disengage("a", discovery.ReasonDeleted)
			daemon.SetSilent(false)
			expect(t, reported, "ENGAGED a", "DISENGAGED a DELETED")
		},
		"events are held while SetSilent is true": func(t *testing.T, daemon *discoverytest.Daemon) {
			reported := events(t, daemon, discovery.WatchOptions{})
			daemon.WaitForStreams(1)
			daemon.SetSilent(true)
			daemon.Engage(discovery.Cluster{Name: "a"})
			time.Sleep(time.Minute)
			if len(reported) != 0 {
				t.Errorf("got event %q, want none", <-reported)
			}
			daemon.SetSilent(false)
			expect(t, reported, "ENGAGED a")
		},
		"streams and their requests are counted": func(t *testing.T, daemon *discoverytest.Daemon) {
			for _, organization := range []string{"acme", "other"} {
				filter := discovery.Filter{Organizations: []string{organization}}
				events(t, daemon, discovery.WatchOptions{Filter: filter})
				synctest.Wait()
			}
			daemon.WaitForStreams(2)
			if daemon.Streams() != 2 {
				t.Errorf("got %d open streams, want 2", daemon.Streams())
			}
			requests := daemon.WatchRequests()
			if len(requests) != 2 || requests[1].GetFilter().GetOrganizations()[0] != "other" {
				t.Errorf("got requests %v, want 2, the second with the organization other", requests)
			}
		},
		"Start of a running daemon is a no-op": func(t *testing.T, daemon *discoverytest.Daemon) {
			daemon.Engage(discovery.Cluster{Name: "a"})
			before := daemon.Cluster("a").Incarnation
			daemon.Start()
			if after := daemon.Cluster("a").Incarnation; after != before {
				t.Errorf("the incarnation is %s, want %s", after, before)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, discoverytest.New(t)) })
		})
	}
}

// recorder is a testing.TB that records a failure, without failing the enclosing test.
type recorder struct {
	testing.TB
	failure string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, arguments ...any) {
	r.failure = fmt.Sprintf(format, arguments...)
	runtime.Goexit()
}

func TestStoppedDaemonHasNoStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		daemon := discoverytest.New(t)
		events(t, daemon, discovery.WatchOptions{})
		for range 100 {
			daemon.WaitForStreams(1)
			daemon.Stop()
			if open := daemon.Streams(); open != 0 {
				t.Fatalf("got %d open streams after Stop, want 0", open)
			}
			daemon.Start()
		}
	})
}

func TestDaemonMisuseFailsTheTest(t *testing.T) {
	for want, mistake := range map[string]func(*discoverytest.Daemon){
		"the cluster has no Name": func(d *discoverytest.Daemon) { d.Engage(discovery.Cluster{}) },
		`cluster "a" is already engaged`: func(d *discoverytest.Daemon) {
			d.Engage(discovery.Cluster{Name: "a"}, discovery.Cluster{Name: "a"})
		},
		`cluster "b" is not engaged`: func(d *discoverytest.Daemon) { d.Rotate("b") },
		`unknown disengage reason "BORED"`: func(d *discoverytest.Daemon) {
			d.Engage(discovery.Cluster{Name: "a"})
			d.Disengage("a", "BORED")
		},
		`DiscoveryService has no method "Guess"`:           func(d *discoverytest.Daemon) { d.Fail("Guess", nil) },
		`no cluster "b" was ever engaged`:                  func(d *discoverytest.Daemon) { d.Cluster("b") },
		"0 streams are open and current after 30s, want 1": func(d *discoverytest.Daemon) { d.WaitForStreams(1) },
	} {
		synctest.Test(t, func(t *testing.T) {
			test := &recorder{TB: t}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				mistake(discoverytest.New(test))
			}()
			<-ended
			if test.failure != "discoverytest: "+want {
				t.Errorf("the test ends with %q, want %q", test.failure, want)
			}
		})
	}
}
