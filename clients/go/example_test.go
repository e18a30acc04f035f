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

// A program that follows all clusters until SIGTERM. Dial reads the daemon's address from MILO_DISCOVERY_ADDRESS.
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

// RunFleet runs one handler for each engaged cluster. A new handler of the same cluster starts only after the previous
// one has returned. A draining cluster is released when its handler has returned.
func ExampleClient_RunFleet() {
	daemon, done := startDaemon()
	defer done()
	client := daemon.Client()
	daemon.Engage(discovery.Cluster{Name: "alpha"})

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	err := client.RunFleet(ctx, discovery.FleetOptions{}, func(ctx context.Context, cluster *discovery.EngagedCluster) error {
		kubeconfig, err := cluster.Kubeconfig(ctx) // for clientcmd.RESTConfigFromKubeConfig(kubeconfig.Content)
		if err != nil {
			return err // the handler is called again after a backoff
		}
		fmt.Println("working on", kubeconfig.Cluster)
		daemon.Disengage("alpha", discovery.ReasonDeleted) // cancels ctx
		<-ctx.Done()
		fmt.Println(context.Cause(ctx))
		stop() // ends the example; an operator would only return
		return nil
	})
	fmt.Println(err)
	// Output:
	// working on alpha
	// cluster alpha was disengaged or is draining (DELETED)
	// context canceled
}

// Get explains why a project is not engaged.
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

// Issue returns a short-lived kubeconfig for an engaged cluster.
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

// startDaemon starts a fake daemon for examples, which have no testing.T.
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
