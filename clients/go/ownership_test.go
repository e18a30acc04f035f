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

// events reads lines up to the first event, and returns it.
func (w *watched) event(t *testing.T) string {
	t.Helper()
	for {
		select {
		case line := <-w.lines:
			if strings.HasPrefix(line, strings.ToUpper(line[:1])) {
				return line
			}
		case <-time.After(time.Hour): // of a bubble
			t.Fatal("the watch reports no event")
		}
	}
}

var silent = discoverytest.Error(codes.Unavailable, "", "no answer")

func TestOwnership(t *testing.T) {
	begin := func(t *testing.T, validFor time.Duration) (*discoverytest.Daemon, *watched) {
		t.Helper()
		daemon := discoverytest.New(t)
		daemon.Shard(validFor)
		daemon.Engage(discovery.Cluster{Name: "a"})
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		if got := seen.event(t); got != "ENGAGED a" {
			t.Fatalf("the watch reports %q", got)
		}
		return daemon, seen
	}

	inBubble(t, "is renewed every few seconds, and clusters stay", func(t *testing.T) {
		daemon, seen := begin(t, 20*time.Second)
		time.Sleep(time.Minute)
		if renewals := daemon.Renewals(); renewals < 20 || renewals > 22 {
			t.Errorf("%d renewals in a minute", renewals)
		}
		daemon.Disengage("a", discovery.ReasonMoved)
		if got := seen.event(t); got != "DISENGAGED a" {
			t.Errorf("the watch reports %q", got)
		}
	})

	inBubble(t, "that is not renewed ends the work when its time has passed", func(t *testing.T) {
		for name, lose := range map[string]func(*discoverytest.Daemon){
			"the daemon was killed":     func(d *discoverytest.Daemon) { d.Stop() },
			"the daemon owns nothing":   func(d *discoverytest.Daemon) { d.Shard(0) },
			"the daemon fails the call": func(d *discoverytest.Daemon) { d.Fail("RenewOwnership", silent) },
		} {
			daemon, seen := begin(t, 20*time.Second)
			lost := time.Now()
			lose(daemon)
			if got := seen.event(t); got != "DISENGAGED a" {
				t.Fatalf("%s: the watch reports %q", name, got)
			}
			// The last renewal was up to 3 s before, and real time passes beside that of the bubble.
			if took := time.Since(lost); took < 17*time.Second || took > 21*time.Second {
				t.Errorf("%s: reported after %v", name, took)
			}
			daemon.Fail("RenewOwnership", nil)
			daemon.Shard(20 * time.Second)
			daemon.Start()
			if got := seen.event(t); got != "ENGAGED a" {
				t.Errorf("%s: the watch reports %q when the daemon owns its clusters again", name, got)
			}
			requests := daemon.WatchRequests()
			if last := requests[len(requests)-1]; last.GetResumeRevision() != "" {
				t.Errorf("%s: resumed from %q", name, last.GetResumeRevision())
			}
			seen.stop()
		}
	})

	inBubble(t, "is kept while the daemon restarts in time", func(t *testing.T) {
		daemon, seen := begin(t, 20*time.Second)
		daemon.Stop()
		time.Sleep(10 * time.Second)
		daemon.Start()
		time.Sleep(time.Minute)
		daemon.Engage(discovery.Cluster{Name: "b"})
		if got := seen.event(t); got != "REFRESHED a" {
			t.Errorf("the watch reports %q", got)
		}
		if got := seen.event(t); got != "ENGAGED b" {
			t.Errorf("the watch reports %q", got)
		}
	})

	inBubble(t, "of a daemon that owns nothing yet is awaited", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Shard(0)
		daemon.Engage(discovery.Cluster{Name: "a"})
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		time.Sleep(time.Minute)
		daemon.Shard(20 * time.Second)
		owned := time.Now()
		if got := seen.event(t); got != "ENGAGED a" {
			t.Errorf("the watch reports %q", got)
		}
		if took := time.Since(owned); took < 0 || took > 5*time.Second {
			t.Errorf("engaged %v after the daemon owned its clusters", took)
		}
	})

	inBubble(t, "that a daemon does not have yet is not reported as lost", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Shard(0)
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		time.Sleep(time.Minute)
		daemon.Shard(20 * time.Second)
		daemon.Engage(discovery.Cluster{Name: "a"})
		for line := ""; line != "ENGAGED a"; line = <-seen.lines {
			if strings.Contains(line, discovery.ErrOwnershipLost.Error()) {
				t.Errorf("the watch reports %q", line)
			}
		}
	})

	inBubble(t, "ends the work before a refused watch returns", func(t *testing.T) {
		daemon, seen := begin(t, 20*time.Second)
		daemon.Fail("WatchClusters", discoverytest.Error(codes.PermissionDenied, "FORBIDDEN", "no"))
		daemon.BreakStreams(nil)
		if got := seen.event(t); got != "DISENGAGED a" {
			t.Errorf("the watch reports %q", got)
		}
		if err := <-seen.result; !discovery.IsTerminal(err) {
			t.Errorf("the watch ended with %v", err)
		}
	})

	inBubble(t, "is not asked for where the daemon shares with no other", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a"})
		watch(t, daemon.Client(), discovery.WatchOptions{})
		time.Sleep(time.Minute)
		if daemon.Renewals() != 0 {
			t.Errorf("%d renewals", daemon.Renewals())
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

func TestSourcesAndSharding(t *testing.T) {
	inBubble(t, "are filtered by and listed", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(
			discovery.Cluster{Name: "x#a", Source: "x", Suspended: true, Suspensions: []discovery.Suspension{{Reason: "Billing"}}},
			discovery.Cluster{Name: "y#b", Source: "y"},
		)
		client := daemon.Client()
		listing, err := client.List(t.Context(), discovery.Filter{Sources: []string{"x"}})
		if err != nil || len(listing.Clusters) != 1 || listing.Clusters[0].Source != "x" {
			t.Fatalf("listed %+v: %v", listing, err)
		}
		if got := fmt.Sprint(listing.Clusters[0].Suspensions); !strings.Contains(got, "Billing") {
			t.Errorf("the suspensions are %v", got)
		}
		daemon.SetPendingSources("y")
		if listing, err = client.List(t.Context(), discovery.Filter{}); err != nil || fmt.Sprint(listing.PendingSources) != "[y]" {
			t.Errorf("pending are %v: %v", listing.PendingSources, err)
		}
	})
}
