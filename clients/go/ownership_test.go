package discovery_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
)

// event reads lines up to the first event, and returns it.
func (w *watched) event(t *testing.T) string {
	t.Helper()
	for {
		select {
		case line := <-w.lines:
			if strings.HasPrefix(line, strings.ToUpper(line[:1])) {
				return line
			}
		case <-time.After(time.Hour): // in synctest's fake time
			t.Fatal("the watch reported no event within an hour")
		}
	}
}

var silent = discoverytest.Error(codes.Unavailable, "", "no answer")

func TestWatchRenewsOwnershipAndDisengagesClustersWhenItExpires(t *testing.T) {
	begin := func(t *testing.T, validFor time.Duration) (*discoverytest.Daemon, *watched) {
		t.Helper()
		daemon := discoverytest.New(t)
		daemon.Shard(validFor)
		daemon.Engage(discovery.Cluster{Name: "a"})
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		if got := seen.event(t); got != "ENGAGED a" {
			t.Fatalf("the watch reports %q, want ENGAGED a", got)
		}
		return daemon, seen
	}

	inBubble(t, "ownership is renewed every few seconds, and clusters stay", func(t *testing.T) {
		daemon, seen := begin(t, 20*time.Second)
		time.Sleep(time.Minute)
		if renewals := daemon.Renewals(); renewals < 20 || renewals > 22 {
			t.Errorf("%d renewals in a minute, want about 20", renewals)
		}
		daemon.Disengage("a", discovery.ReasonMoved)
		if got := seen.event(t); got != "DISENGAGED a" {
			t.Errorf("got event %q, want DISENGAGED a", got)
		}
	})

	inBubble(t, "ownership that is not renewed disengages all clusters when it expires", func(t *testing.T) {
		for name, lose := range map[string]func(*discoverytest.Daemon){
			"the daemon was killed":       func(d *discoverytest.Daemon) { d.Stop() },
			"the daemon owns no clusters": func(d *discoverytest.Daemon) { d.Shard(0) },
			"the daemon fails the call":   func(d *discoverytest.Daemon) { d.Fail("RenewOwnership", silent) },
		} {
			daemon, seen := begin(t, 20*time.Second)
			lost := time.Now()
			lose(daemon)
			if got := seen.event(t); got != "DISENGAGED a" {
				t.Fatalf("%s: got event %q, want DISENGAGED a", name, got)
			}
			// The last renewal was up to 3 s ago. CLOCK_BOOTTIME advances as well, since synctest does not fake it.
			if took := time.Since(lost); took < 17*time.Second || took > 21*time.Second {
				t.Errorf("%s: reported after %v, want about 20s", name, took)
			}
			daemon.Fail("RenewOwnership", nil)
			daemon.Shard(20 * time.Second)
			daemon.Start()
			if got := seen.event(t); got != "ENGAGED a" {
				t.Errorf("%s: the watch reports %q when the daemon owns its clusters again, want ENGAGED a", name, got)
			}
			requests := daemon.WatchRequests()
			if last := requests[len(requests)-1]; last.GetResumeRevision() != "" {
				t.Errorf("%s: the stream resumed from %q, want a snapshot", name, last.GetResumeRevision())
			}
			seen.stop()
		}
	})

	inBubble(t, "ownership of a subscriber without a stream expires, and is regained without clusters", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Shard(20 * time.Second)
		daemon.Engage(discovery.Cluster{Name: "a"})
		seen := watch(t, daemon.Client(), discovery.WatchOptions{Subscriber: "operator"})
		if got := seen.event(t); got != "ENGAGED a" {
			t.Fatalf("the watch reports %q, want ENGAGED a", got)
		}
		time.Sleep(time.Minute)
		daemon.Fail("WatchClusters", discoverytest.Error(codes.ResourceExhausted, "", "too many streams"))
		daemon.BreakStreams(nil)
		broken := time.Now()
		if got := seen.event(t); got != "DISENGAGED a" {
			t.Fatalf("got event %q, want DISENGAGED a", got)
		}
		if took := time.Since(broken); took < 17*time.Second || took > 21*time.Second {
			t.Errorf("reported after %v, want about 20s", took)
		}
		daemon.Fail("WatchClusters", nil)
		if got := seen.event(t); got != "ENGAGED a" {
			t.Errorf("got event %q, want ENGAGED a", got)
		}
	})

	inBubble(t, "ownership is kept if the daemon restarts before it expires", func(t *testing.T) {
		daemon, seen := begin(t, 20*time.Second)
		daemon.Stop()
		time.Sleep(10 * time.Second)
		daemon.Start()
		time.Sleep(time.Minute)
		daemon.Engage(discovery.Cluster{Name: "b"})
		if got := seen.event(t); got != "REFRESHED a" {
			t.Errorf("got event %q, want REFRESHED a", got)
		}
		if got := seen.event(t); got != "ENGAGED b" {
			t.Errorf("got event %q, want ENGAGED b", got)
		}
	})

	inBubble(t, "ownership is awaited before clusters are engaged", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Shard(0)
		daemon.Engage(discovery.Cluster{Name: "a"})
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		time.Sleep(time.Minute)
		daemon.Shard(20 * time.Second)
		owned := time.Now()
		if got := seen.event(t); got != "ENGAGED a" {
			t.Errorf("got event %q, want ENGAGED a", got)
		}
		if took := time.Since(owned); took < 0 || took > 5*time.Second {
			t.Errorf("engaged %v after the daemon owned its clusters, want within 5s", took)
		}
	})

	inBubble(t, "ownership that was never held is not reported as lost", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Shard(0)
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		time.Sleep(time.Minute)
		daemon.Shard(20 * time.Second)
		daemon.Engage(discovery.Cluster{Name: "a"})
		for line := ""; line != "ENGAGED a"; line = <-seen.lines {
			if strings.Contains(line, discovery.ErrOwnershipLost.Error()) {
				t.Errorf("got %q, want no lost ownership", line)
			}
		}
	})

	inBubble(t, "all clusters are disengaged before a watch returns a terminal error", func(t *testing.T) {
		daemon, seen := begin(t, 20*time.Second)
		daemon.Fail("WatchClusters", discoverytest.Error(codes.PermissionDenied, "FORBIDDEN", "no"))
		daemon.BreakStreams(nil)
		if got := seen.event(t); got != "DISENGAGED a" {
			t.Errorf("got event %q, want DISENGAGED a", got)
		}
		if err := <-seen.result; !discovery.IsTerminal(err) {
			t.Errorf("Watch() error = %v, want a terminal one", err)
		}
	})

	inBubble(t, "ownership is not requested from a daemon that is not sharded", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a"})
		watch(t, daemon.Client(), discovery.WatchOptions{})
		time.Sleep(time.Minute)
		if daemon.Renewals() != 0 {
			t.Errorf("%d renewals, want none", daemon.Renewals())
		}
	})
}

func TestWatchKeepsClustersOfPendingSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "x#a", Source: "x"}, discovery.Cluster{Name: "y#b", Source: "y"})
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		seen.expect(t, "connected", "ENGAGED x#a", "ENGAGED y#b", "synced: 2")
		daemon.SetPendingSources("x")
		seen.expect(t, "pending: [x]", "synced: 2")
		daemon.Disengage("y#b", discovery.ReasonDeleted)
		seen.expect(t, "DISENGAGED y#b")
		daemon.SetPendingSources()
		seen.expect(t, "synced: 1")
	})
}

func TestListHasSuspensionsAndPendingSources(t *testing.T) {
	inBubble(t, "filters by source, and returns suspensions and pending sources", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(
			discovery.Cluster{Name: "x#a", Source: "x", Suspended: true, Suspensions: []discovery.Suspension{{Reason: "Billing"}}},
			discovery.Cluster{Name: "y#b", Source: "y"},
		)
		client := daemon.Client()
		listing, err := client.List(t.Context(), discovery.Filter{Sources: []string{"x"}})
		if err != nil || len(listing.Clusters) != 1 || listing.Clusters[0].Source != "x" {
			t.Fatalf("got listing %+v and error %v, want one cluster of source x", listing, err)
		}
		if got := fmt.Sprint(listing.Clusters[0].Suspensions); !strings.Contains(got, "Billing") {
			t.Errorf("got suspensions %v, want one with reason Billing", got)
		}
		daemon.SetPendingSources("y")
		if listing, err = client.List(t.Context(), discovery.Filter{}); err != nil || fmt.Sprint(listing.PendingSources) != "[y]" {
			t.Errorf("the pending sources are %v, %v; want [y]", listing.PendingSources, err)
		}
	})
}
