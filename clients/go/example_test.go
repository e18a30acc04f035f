package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os/signal"
	"slices"
	"syscall"
	"testing"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
)

// A program that follows all clusters until it is terminated. The environment names the address of the daemon.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	client, err := discovery.Dial(discovery.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	err = client.Watch(ctx, discovery.WatchOptions{}, func(events []discovery.Event) {
		for _, event := range events {
			fmt.Println(event.Type, event.Cluster.Name, event.Cluster.Endpoint)
		}
	})
	if !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}

// One goroutine for each engaged cluster, whose context ends when the cluster is disengaged.
func ExampleClient_Watch() {
	daemon, done := startDaemon()
	defer done()
	client := daemon.Client()
	daemon.Engage(discovery.Cluster{Name: "alpha"})

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	work := func(ctx context.Context, cluster discovery.Cluster) {
		<-ctx.Done()
		fmt.Println("stopped working on", cluster.Name)
		stop() // where an operator would return
	}
	cancels := map[string]context.CancelFunc{}
	err := client.Watch(ctx, discovery.WatchOptions{}, func(events []discovery.Event) {
		for _, event := range events {
			name := event.Cluster.Name
			switch event.Type {
			case discovery.EventEngaged:
				fmt.Println("working on", name)
				var clusterContext context.Context
				clusterContext, cancels[name] = context.WithCancel(ctx)
				go work(clusterContext, event.Cluster)
				daemon.Disengage("alpha", discovery.ReasonDeleted) // this example's next event
			case discovery.EventDisengaged:
				fmt.Println("disengaged:", event.Reason)
				cancels[name]()
				delete(cancels, name)
			case discovery.EventUpdated, discovery.EventKubeconfig, discovery.EventRefreshed: // the work goes on
			}
		}
	})
	fmt.Println(err)
	// Output:
	// working on alpha
	// disengaged: DELETED
	// stopped working on alpha
	// context canceled
}

// A follower for a part of an operator that is told to add and to remove clusters, and takes long for that. A cluster is
// removed after it was added, added again after it was removed, also where its endpoint changes, and released to the next
// replica after that.
func ExampleClient_Release() {
	daemon, done := startDaemon()
	defer done()
	client := daemon.Client()
	daemon.Engage(discovery.Cluster{Name: "alpha"})

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	add := func(_ context.Context, cluster discovery.Cluster) {
		fmt.Println("added", cluster.Name)
		daemon.Drain("alpha", discovery.ReasonMoved) // this example's next event
	}
	remove := func(name string) { fmt.Println("removed", name) }

	type work struct {
		endpoint string
		cancel   context.CancelFunc
		ended    chan struct{}
	}
	none := work{cancel: func() {}, ended: make(chan struct{})}
	close(none.ended)
	works := map[string]work{}
	options := discovery.WatchOptions{Subscriber: discovery.NewSubscriber()}
	err := client.Watch(ctx, options, func(events []discovery.Event) {
		for _, event := range events {
			cluster := event.Cluster
			last, ok := works[cluster.Name]
			if !ok {
				last = none
			}
			switch {
			case event.Type == discovery.EventDisengaged:
				last.cancel()
				fmt.Println("disengaged:", event.Reason)
				stop() // this example ends here
			case cluster.Draining != nil:
				last.cancel()
				go func() {
					<-last.ended
					if err := client.Release(ctx, cluster, options.Subscriber); err != nil {
						log.Println(err)
					}
				}()
			case event.Type == discovery.EventEngaged || cluster.Endpoint != last.endpoint:
				last.cancel()
				clusterContext, cancel := context.WithCancel(ctx)
				next := work{cluster.Endpoint, cancel, make(chan struct{})}
				works[cluster.Name] = next
				go func() {
					defer close(next.ended)
					<-last.ended
					if clusterContext.Err() != nil {
						return
					}
					add(clusterContext, cluster)
					<-clusterContext.Done()
					remove(cluster.Name)
				}()
			}
		}
	})
	fmt.Println(err)
	for _, last := range works {
		<-last.ended
	}
	if err := client.EndSubscription(context.Background(), options.Subscriber); err != nil {
		log.Println(err)
	}
	// Output:
	// added alpha
	// removed alpha
	// disengaged: MOVED
	// context canceled
}

// Why is a project not engaged?
func ExampleClient_Get() {
	daemon, done := startDaemon()
	defer done()
	client := daemon.Client()
	daemon.Engage(discovery.Cluster{Name: "alpha"})
	daemon.Disengage("alpha", discovery.ReasonNotReady)

	report, err := client.Get(context.Background(), "alpha")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("engaged:", report.Engagement.Engaged, "because of", report.Engagement.Reason)

	_, err = client.Get(context.Background(), "omega")
	fmt.Println("not found:", errors.Is(err, discovery.ErrNotFound))
	// Output:
	// engaged: false because of NOT_READY
	// not found: true
}

// A short-lived kubeconfig of an engaged cluster.
func ExampleClient_Issue() {
	daemon, done := startDaemon()
	defer done()
	client := daemon.Client()
	daemon.Engage(discovery.Cluster{Name: "alpha"})

	kubeconfig, err := client.Issue(context.Background(), "alpha", discovery.IssueOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(kubeconfig.Cluster, kubeconfig.ExpiresAt.Sub(kubeconfig.IssuedAt))
	// Output: alpha 1h0m0s
}

// startDaemon starts a daemon for examples, which have no testing.T.
func startDaemon() (*discoverytest.Daemon, func()) {
	test := &exampleTest{}
	return discoverytest.New(test), test.done
}

type exampleTest struct {
	testing.TB
	cleanups []func()
}

func (e *exampleTest) Helper()          {}
func (e *exampleTest) Cleanup(f func()) { e.cleanups = append(e.cleanups, f) }
func (e *exampleTest) done() {
	for _, each := range slices.Backward(e.cleanups) {
		each()
	}
}
