package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	pb "go.miloapis.com/discovery/v1"
)

// watched records a watch: its events as "TYPE name", and the state of its stream.
type watched struct {
	lines  chan string
	result chan error
	stop   context.CancelFunc
}

func watch(t *testing.T, client *discovery.Client, options discovery.WatchOptions) *watched {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	seen := &watched{lines: make(chan string, 10_000), result: make(chan error, 1), stop: stop}
	options.Hooks = discovery.Hooks{
		Connected:    func(resumed bool) { seen.lines <- fmt.Sprintf("connected, resumed: %t", resumed) },
		Disconnected: func(err error) { seen.lines <- fmt.Sprintf("disconnected: %v", err) },
		Pending: func(sources []string) {
			if len(sources) > 0 {
				seen.lines <- fmt.Sprintf("pending: %v", sources)
			}
		},
		Synced: func(clusters int) { seen.lines <- fmt.Sprintf("synced: %d", clusters) },
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		seen.result <- client.Watch(ctx, options, func(events []discovery.Event) {
			for _, event := range events {
				seen.lines <- fmt.Sprintf("%s %s", event.Type, event.Cluster.Name)
			}
		})
	}()
	t.Cleanup(func() { stop(); <-ended })
	return seen
}

// expect reads the next lines, each of which must begin with the wanted text.
func (w *watched) expect(t *testing.T, wanted ...string) {
	t.Helper()
	for _, each := range wanted {
		select {
		case line := <-w.lines:
			if !strings.HasPrefix(line, each) {
				t.Fatalf("the watch reports %q, want %q", line, each)
			}
		case <-time.After(time.Hour): // in synctest's fake time
			t.Fatalf("the watch reported nothing within an hour, want %q", each)
		}
	}
}

func inBubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

func TestWatchReportsTheSnapshotAndChanges(t *testing.T) {
	inBubble(t, "a snapshot is reported first, and then changes", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a"}, discovery.Cluster{Name: "b"})
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		seen.expect(t, "connected, resumed: false", "ENGAGED a", "ENGAGED b", "synced: 2")
		daemon.Update("a", func(cluster *discovery.Cluster) { cluster.Suspended = true })
		daemon.Disengage("b", discovery.ReasonDeleted)
		seen.expect(t, "UPDATED a", "DISENGAGED b")
	})

	inBubble(t, "a replaced cluster is disengaged and engaged in one call", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a"})
		calls := make(chan []discovery.Event, 10)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go func() {
			_ = daemon.Client().Watch(ctx, discovery.WatchOptions{}, func(events []discovery.Event) { calls <- events })
		}()
		first := <-calls
		daemon.Replace(discovery.Cluster{Name: "a"})
		second := <-calls
		if len(second) != 2 || second[0].Reason != discovery.ReasonReplaced || second[1].Type != discovery.EventEngaged {
			t.Errorf("the replacement is reported as %+v, want DISENGAGED REPLACED and ENGAGED", second)
		}
		if first[0].Cluster.UID == second[1].Cluster.UID {
			t.Error("the replacement has the UID of the replaced cluster")
		}
	})

	inBubble(t, "the request contains the options", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		watch(t, daemon.client(t), discovery.WatchOptions{
			Filter: discovery.Filter{
				LabelSelector: "env=prod", Names: []string{"a"}, Organizations: []string{"acme"},
			},
			IncludeKubeconfigs: true,
			KubeconfigTTL:      5 * time.Minute,
			HeartbeatInterval:  7 * time.Second,
		})
		want := &pb.WatchClustersRequest{
			Filter: &pb.ClusterFilter{
				LabelSelector: "env=prod", Names: []string{"a"}, Organizations: []string{"acme"},
			},
			IncludeKubeconfigs: true,
			KubeconfigTtl:      durationpb.New(5 * time.Minute),
			HeartbeatInterval:  durationpb.New(7 * time.Second),

			AcceptsPendingSources: true,
		}
		if stream := daemon.begin(); !proto.Equal(stream.request, want) {
			t.Errorf("the request is %v, want %v", stream.request, want)
		}
	})

	inBubble(t, "kubeconfigs arrive with engagements and rotations", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a"})
		contents := make(chan string, 10)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		options := discovery.WatchOptions{IncludeKubeconfigs: true}
		go func() {
			_ = daemon.Client().Watch(ctx, options, func(events []discovery.Event) {
				for _, event := range events {
					contents <- string(event.Kubeconfig.Content)
				}
			})
		}()
		for _, token := range []string{`"token":"a-1"`, `"token":"a-2"`} {
			if content := <-contents; !strings.Contains(content, token) {
				t.Errorf("the kubeconfig is %s, want one with %s", content, token)
			}
			daemon.Rotate("a")
		}
	})

	inBubble(t, "an unusable kubeconfig is removed from its event", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		lines := make(chan string, 10)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		hooks := discovery.Hooks{KubeconfigRefused: func(err error) { lines <- err.Error() }}
		go func() {
			_ = daemon.client(t).Watch(ctx, discovery.WatchOptions{Hooks: hooks}, func(events []discovery.Event) {
				lines <- fmt.Sprintf("%d events, the first of which is %s %v", len(events), events[0].Type, events[0].Kubeconfig)
			})
		}()
		event := engaged("a")
		event.Kubeconfig = &pb.Kubeconfig{Kubeconfig: []byte(`{"users": [{"user": {"exec": {"command": "/bin/sh"}}}]}`)}
		renewed := proto.CloneOf(event)
		renewed.Type = pb.ClusterEvent_TYPE_KUBECONFIG
		daemon.begin(snapshot("1", event), following("1", "2", renewed))
		refusal := `cluster "a": kubeconfig refused: it is not JSON with the fields that the daemon writes`
		for _, want := range []string{refusal, "1 events, the first of which is ENGAGED <nil>", refusal} {
			if line := <-lines; line != want {
				t.Errorf("the watch reports %q, want %q", line, want)
			}
		}
	})

	inBubble(t, "the source's state is reported without a disconnect", func(t *testing.T) {
		daemon := discoverytest.New(t)
		states := make(chan discovery.SourceState, 10)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		hooks := discovery.Hooks{
			Source:       func(source discovery.SourceStatus) { states <- source.State },
			Disconnected: func(err error) { t.Errorf("got disconnect %v, want none", err) },
		}
		go func() {
			_ = daemon.Client().Watch(ctx, discovery.WatchOptions{Hooks: hooks}, func([]discovery.Event) {})
		}()
		if state := <-states; state != discovery.SourceStreaming {
			t.Errorf("the first state is %q, want STREAMING", state)
		}
		daemon.SetSource(discovery.SourceStatus{State: discovery.SourceStale, Reason: "ConnectFailed"})
		if state := <-states; state != discovery.SourceStale {
			t.Errorf("the second state is %q, want STALE", state)
		}
	})

	inBubble(t, "a large snapshot is reported when it is complete", func(t *testing.T) {
		const clusters = 1201
		daemon := discoverytest.New(t)
		fleet := make([]discovery.Cluster, clusters)
		for i := range fleet {
			fleet[i].Name = fmt.Sprintf("cluster-%04d", i)
		}
		daemon.Engage(fleet...)
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		seen.expect(t, "connected")
		for i := range clusters {
			seen.expect(t, fmt.Sprintf("ENGAGED cluster-%04d", i))
		}
		seen.expect(t, "synced: 1201")
	})

	inBubble(t, "a cluster that enters or leaves the filter is engaged or disengaged", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a", Labels: map[string]string{"env": "dev"}})
		filter := discovery.Filter{LabelSelector: "env in (prod, staging), !hidden"}
		seen := watch(t, daemon.Client(), discovery.WatchOptions{Filter: filter})
		seen.expect(t, "connected", "synced: 0")
		label := func(labels map[string]string) func(*discovery.Cluster) {
			return func(cluster *discovery.Cluster) { cluster.Labels = labels }
		}
		daemon.Update("a", label(map[string]string{"env": "prod"}))
		daemon.Update("a", label(map[string]string{"env": "staging"}))
		daemon.Update("a", label(map[string]string{"env": "staging", "hidden": ""}))
		seen.expect(t, "ENGAGED a", "UPDATED a", "DISENGAGED a")
	})
}

func TestWatchReconnectsAndReportsOnlyDifferences(t *testing.T) {
	inBubble(t, "a broken stream is resumed without repeated events", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a"})
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		seen.expect(t, "connected, resumed: false", "ENGAGED a", "synced: 1")
		daemon.BreakStreams(nil)
		daemon.Engage(discovery.Cluster{Name: "b"})
		seen.expect(t, "disconnected: WatchClusters: Unavailable", "connected, resumed: true", "ENGAGED b")
	})

	inBubble(t, "after a restart of the daemon only the differences are reported", func(t *testing.T) {
		daemon := discoverytest.New(t)
		for _, name := range []string{"goes", "is-replaced", "is-updated", "stays"} {
			daemon.Engage(discovery.Cluster{Name: name})
		}
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		seen.expect(t, "connected", "ENGAGED", "ENGAGED", "ENGAGED", "ENGAGED", "synced: 4")
		daemon.Stop()
		seen.expect(t, "disconnected")
		daemon.Disengage("goes", discovery.ReasonDeleted)
		daemon.Replace(discovery.Cluster{Name: "is-replaced"})
		daemon.Update("is-updated", func(cluster *discovery.Cluster) { cluster.Endpoint = "https://elsewhere" })
		daemon.Engage(discovery.Cluster{Name: "comes"})
		time.Sleep(time.Minute)
		daemon.Start()
		seen.expect(t, "connected, resumed: false", "DISENGAGED goes", "ENGAGED comes", "DISENGAGED is-replaced",
			"ENGAGED is-replaced", "UPDATED is-updated", "REFRESHED stays", "synced: 4")
	})

	inBubble(t, "a daemon without a complete view disengages nothing", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a"})
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		seen.expect(t, "connected", "ENGAGED a", "synced: 1")
		daemon.SetSynced(false)
		daemon.Restart()
		seen.expect(t, "disconnected", "connected, resumed: false")
		time.Sleep(time.Hour)
		daemon.SetSynced(true)
		seen.expect(t, "REFRESHED a", "synced: 1")
	})

	inBubble(t, "a reset in the middle of a stream reports no unchanged cluster", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a"})
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		seen.expect(t, "connected", "ENGAGED a", "synced: 1")
		daemon.Reset()
		seen.expect(t, "synced: 1")
	})

	inBubble(t, "a watch reconnects until the daemon is started", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Stop()
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		seen.expect(t, "disconnected: WatchClusters: Unavailable")
		time.Sleep(time.Minute)
		daemon.Start()
		seen.expect(t, "connected, resumed: false", "synced: 0")
	})

	for _, code := range []codes.Code{
		codes.Unavailable, codes.Aborted, codes.ResourceExhausted, codes.Internal, codes.Unknown, codes.Canceled,
	} {
		inBubble(t, "a stream that ends with "+code.String()+" is resumed", func(t *testing.T) {
			daemon := discoverytest.New(t)
			seen := watch(t, daemon.Client(), discovery.WatchOptions{})
			seen.expect(t, "connected, resumed: false", "synced: 0")
			daemon.BreakStreams(status.Error(code, "broken"))
			seen.expect(t, "disconnected: WatchClusters: "+code.String(), "connected, resumed: true")
		})
	}

	inBubble(t, "a stream that ends without an error is resumed", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		seen := watch(t, daemon.client(t), discovery.WatchOptions{})
		daemon.begin(snapshot("1")).end <- nil
		daemon.begin(following("1", "2", engaged("a")))
		seen.expect(t, "connected", "synced: 0",
			"disconnected: discovery stream is broken: the daemon ended the stream",
			"connected, resumed: true", "ENGAGED a")
	})

	inBubble(t, "a missing batch is requested again", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		seen := watch(t, daemon.client(t), discovery.WatchOptions{})
		first := daemon.begin(snapshot("1"), following("2", "3", engaged("b")))
		second := daemon.begin(following("1", "3", engaged("a"), engaged("b")))
		if second.request.GetResumeRevision() != "1" {
			t.Errorf("the stream resumes from %q, want 1", second.request.GetResumeRevision())
		}
		seen.expect(t, "connected", "synced: 0", "disconnected", "connected", "ENGAGED a", "ENGAGED b")
		<-first.ended
	})

	inBubble(t, "a contradiction is resolved by a snapshot", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		seen := watch(t, daemon.client(t), discovery.WatchOptions{})
		daemon.begin(snapshot("1", engaged("a")), following("1", "2", engaged("a")))
		second := daemon.begin(snapshot("2", engaged("a"), engaged("b")))
		if second.request.GetResumeRevision() != "" {
			t.Errorf("the stream resumes from %q, want a snapshot", second.request.GetResumeRevision())
		}
		seen.expect(t, "connected", "ENGAGED a", "synced: 1", "disconnected", "connected", "ENGAGED b", "synced: 2")
	})

	for _, each := range []struct{ asked, silence time.Duration }{
		{0, 90 * time.Second},
		{5 * time.Second, 15 * time.Second},
		{time.Millisecond, 3 * time.Second},
		{24 * time.Hour, 3 * time.Hour},
	} {
		name := fmt.Sprintf("the heartbeat timeout is %[2]v for an interval of %[1]v", each.asked, each.silence)
		inBubble(t, name, func(t *testing.T) {
			daemon := newScriptedDaemon(t)
			seen := watch(t, daemon.client(t), discovery.WatchOptions{HeartbeatInterval: each.asked})
			daemon.begin(snapshot("1"))
			seen.expect(t, "connected", "synced: 0")
			begun := time.Now()
			second := daemon.begin()
			if waited := time.Since(begun); waited < each.silence || waited > each.silence+time.Second {
				t.Errorf("a new stream is opened after %v, want %v", waited, each.silence)
			}
			seen.expect(t, fmt.Sprintf("disconnected: discovery stream is broken: no heartbeat for %v", each.silence))
			second.send(following("1", "2", engaged("a")))
			seen.expect(t, "connected, resumed: true", "ENGAGED a")
		})
	}

	inBubble(t, "heartbeats keep an idle stream alive", func(t *testing.T) {
		daemon := discoverytest.New(t)
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		seen.expect(t, "connected", "synced: 0")
		time.Sleep(24 * time.Hour)
		daemon.Engage(discovery.Cluster{Name: "a"})
		seen.expect(t, "ENGAGED a")
	})

	inBubble(t, "the heartbeat timeout excludes the time of a slow handler", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		handled := make(chan struct{})
		hooks := discovery.Hooks{Disconnected: func(err error) { t.Errorf("got disconnect %v, want none", err) }}
		go func() {
			_ = daemon.client(t).Watch(ctx, discovery.WatchOptions{Hooks: hooks}, func([]discovery.Event) {
				time.Sleep(time.Hour)
				handled <- struct{}{}
			})
		}()
		stream := daemon.begin(snapshot("1", engaged("a")))
		<-handled
		stream.send(following("1", "2", engaged("b")))
		<-handled
	})

	inBubble(t, "failing streams are retried with backoff", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		seen := watch(t, daemon.client(t), discovery.WatchOptions{})
		waits := make([]time.Duration, 0, 12)
		for range 12 {
			stream := daemon.begin()
			stream.end <- status.Error(codes.Unavailable, "not now")
			begun := time.Now()
			next := <-daemon.streams
			waits = append(waits, time.Since(begun))
			next.end <- status.Error(codes.Unavailable, "not now")
		}
		if waits[0] > 200*time.Millisecond || slices.Max(waits) > 5*time.Second || slices.Max(waits) < 2*time.Second {
			t.Errorf("the delays between streams are %v, want about 100ms to 5s", waits)
		}
		seen.expect(t, "disconnected")
		if len(seen.lines) != 0 {
			t.Errorf("got a second disconnect %q, want one", <-seen.lines)
		}
	})
}

func TestWatchEndsWithATerminalErrorOrWhenItIsStopped(t *testing.T) {
	for code, want := range map[codes.Code]error{
		codes.InvalidArgument:    discovery.ErrInvalidRequest,
		codes.PermissionDenied:   discovery.ErrPermissionDenied,
		codes.Unauthenticated:    discovery.ErrUnauthenticated,
		codes.Unimplemented:      discovery.ErrUnimplemented,
		codes.FailedPrecondition: discovery.ErrPreconditionFailed,
	} {
		inBubble(t, "with the terminal status "+code.String(), func(t *testing.T) {
			daemon := discoverytest.New(t)
			daemon.Engage(discovery.Cluster{Name: "a"})
			seen := watch(t, daemon.Client(), discovery.WatchOptions{})
			seen.expect(t, "connected", "ENGAGED a", "synced: 1")
			daemon.BreakStreams(discoverytest.Error(code, "BECAUSE", "no"))
			err := <-seen.result
			var failed *discovery.StatusError
			if !errors.Is(err, want) || !discovery.IsTerminal(err) || !errors.As(err, &failed) || failed.Reason != "BECAUSE" {
				t.Errorf("Watch() error = %v, want %v with reason BECAUSE", err, want)
			}
			if len(seen.lines) != 0 {
				t.Errorf("got event %q after the end of the watch, want none", <-seen.lines)
			}
		})
	}

	inBubble(t, "when its context is canceled", func(t *testing.T) {
		daemon := discoverytest.New(t)
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		seen.expect(t, "connected", "synced: 0")
		seen.stop()
		if err := <-seen.result; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch() error = %v, want Canceled", err)
		}
		daemon.WaitForStreams(0)
	})

	inBubble(t, "when its context is canceled between two streams", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Stop()
		seen := watch(t, daemon.Client(), discovery.WatchOptions{})
		seen.expect(t, "disconnected")
		seen.stop()
		if err := <-seen.result; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch() error = %v, want Canceled", err)
		}
	})

	inBubble(t, "when its client is closed", func(t *testing.T) {
		daemon := discoverytest.New(t)
		client := daemon.Client()
		seen := watch(t, client, discovery.WatchOptions{})
		seen.expect(t, "connected", "synced: 0")
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		if err := <-seen.result; !errors.Is(err, discovery.ErrClosed) {
			t.Errorf("Watch() error = %v, want ErrClosed", err)
		}
		if err := client.Watch(t.Context(), discovery.WatchOptions{}, nil); !errors.Is(err, discovery.ErrClosed) {
			t.Errorf("Watch() of a closed client: error = %v, want ErrClosed", err)
		}
	})

	inBubble(t, "when its handler cancels the context, without further events", func(t *testing.T) {
		daemon := discoverytest.New(t)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		daemon.Engage(discovery.Cluster{Name: "a"})
		calls := 0
		err := daemon.Client().Watch(ctx, discovery.WatchOptions{}, func([]discovery.Event) {
			calls++
			daemon.Engage(discovery.Cluster{Name: "b"})
			stop()
		})
		if !errors.Is(err, context.Canceled) || calls != 1 {
			t.Errorf("Watch() error = %v after %d calls, want Canceled after 1", err, calls)
		}
	})
}
