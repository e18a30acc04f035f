package discovery_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"go.miloapis.com/discovery"
)

// daemonVariable is the environment variable for the address of a milo-discoveryd that issues kubeconfigs and on which
// the project alpha is engaged. tests/end_to_end/go_modules starts one.
const daemonVariable = "MILO_DISCOVERY_TEST_ADDRESS"

func TestModuleWorksWithARealDaemon(t *testing.T) {
	address := os.Getenv(daemonVariable)
	if address == "" {
		t.Skipf("%s is not set", daemonVariable)
	}
	client, err := discovery.Dial(discovery.Options{Address: address, Credentials: &discovery.Credentials{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })

	t.Run("Info", func(t *testing.T) {
		info, err := client.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !info.Synced || info.Mode != "project" || info.Counts.Engaged != 1 || info.StartedAt.IsZero() ||
			info.Limits.DefaultHeartbeatInterval <= 0 || len(info.CredentialIssuers) == 0 {
			t.Errorf("got %+v, want a synced daemon in mode project with 1 engaged cluster", info)
		}
	})

	t.Run("List and Get", func(t *testing.T) {
		listing, err := client.List(t.Context(), discovery.Filter{Names: []string{"alpha", "omega"}})
		if err != nil {
			t.Fatal(err)
		}
		if len(listing.Clusters) != 1 || listing.Clusters[0].Name != "alpha" || listing.Clusters[0].UID == "" ||
			listing.Source.State != discovery.SourceStreaming || listing.Revision == "" {
			t.Errorf("got listing %+v, want alpha with a UID, and source state STREAMING", listing)
		}
		report, err := client.Get(t.Context(), "alpha")
		if err != nil {
			t.Fatal(err)
		}
		if !report.Engagement.Engaged || report.Cluster.Endpoint != listing.Clusters[0].Endpoint {
			t.Errorf("got report %+v, want engaged with the endpoint of the listing", report)
		}
	})

	t.Run("errors", func(t *testing.T) {
		var failed *discovery.StatusError
		_, err := client.Get(t.Context(), "omega")
		if !errors.Is(err, discovery.ErrNotFound) || !errors.As(err, &failed) || failed.Reason == "" {
			t.Errorf("Get() of an unknown name: error = %v, want ErrNotFound with a reason", err)
		}
		_, err = client.List(t.Context(), discovery.Filter{LabelSelector: "in (("})
		if !errors.Is(err, discovery.ErrInvalidRequest) || !errors.As(err, &failed) || len(failed.Violations) != 1 {
			t.Errorf("List() with an invalid selector: error = %v, want ErrInvalidRequest with one violation", err)
		}
		_, err = client.Issue(t.Context(), "alpha", discovery.IssueOptions{Incarnation: "another"})
		if !errors.Is(err, discovery.ErrPreconditionFailed) {
			t.Errorf("Issue() for another incarnation: error = %v, want ErrPreconditionFailed", err)
		}
	})

	t.Run("Issue", func(t *testing.T) {
		embedded, err := client.Issue(t.Context(), "alpha", discovery.IssueOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !embedded.ExpiresAt.After(time.Now()) || embedded.IssuedAt.IsZero() || embedded.RefreshAfter.IsZero() {
			t.Errorf("got kubeconfig %v, want IssuedAt, RefreshAfter, and ExpiresAt in the future", embedded)
		}
		plugin, err := client.Issue(t.Context(), "alpha", discovery.IssueOptions{Format: discovery.FormatExec})
		if err != nil {
			t.Fatal(err)
		}
		if !plugin.ExpiresAt.IsZero() {
			t.Errorf("got exec kubeconfig %v, want no ExpiresAt", plugin)
		}
	})

	t.Run("Watch", func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		options := discovery.WatchOptions{IncludeKubeconfigs: true, HeartbeatInterval: time.Second}
		options.Hooks.KubeconfigRefused = func(err error) { t.Error(err) }
		options.Hooks.Disconnected = func(err error) { t.Errorf("got disconnect %v, want none", err) }
		heartbeats, hasKubeconfig := 0, false
		options.Hooks.Received = func() {
			if heartbeats++; heartbeats > 3 && hasKubeconfig {
				stop()
			}
		}
		err := client.Watch(ctx, options, func(events []discovery.Event) {
			for _, event := range events {
				if event.Cluster.Name != "alpha" {
					t.Errorf("got event %+v, want only alpha", event)
				}
				hasKubeconfig = hasKubeconfig || event.Kubeconfig != nil
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Watch(): error = %v, want context.Canceled", err)
		}
	})
}
