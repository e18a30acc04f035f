package discoverytest_test

import (
	"context"
	"fmt"
	"testing"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
)

// A subscriber receives the changes that a test makes to the fleet.
func Example() {
	t := &testing.T{} // in a test, use the test's t, which stops the daemon and closes the client at its end
	daemon := discoverytest.New(t)
	defer daemon.Stop()
	client := daemon.Client()
	defer func() { _ = client.Close() }()
	daemon.Engage(discovery.Cluster{Name: "alpha", Labels: map[string]string{"env": "prod"}})
	ctx, stop := context.WithCancel(context.Background())
	_ = client.Watch(ctx, discovery.WatchOptions{}, func(events []discovery.Event) {
		for _, event := range events {
			fmt.Println(event.Type, event.Cluster.Name)
			if event.Type == discovery.EventDisengaged {
				stop()
				continue
			}
			go daemon.Disengage("alpha", discovery.ReasonDeleted)
		}
	})
	// Output:
	// ENGAGED alpha
	// DISENGAGED alpha
}
