package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	pb "go.miloapis.com/discovery/v1"
)

func TestListReturnsEngagedClusters(t *testing.T) {
	inBubble(t, "returns all pages, ordered by name", func(t *testing.T) {
		daemon := discoverytest.New(t)
		for i := range 1001 {
			daemon.Engage(discovery.Cluster{Name: fmt.Sprintf("cluster-%04d", 1000-i)})
		}
		listing, err := daemon.Client().List(t.Context(), discovery.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		if len(listing.Clusters) != 1001 || listing.Clusters[1000].Name != "cluster-1000" {
			t.Errorf("got %d clusters, the last of which is %+v; want 1001 clusters and cluster-1000", len(listing.Clusters), listing.Clusters[1000])
		}
		if listing.Source.State != discovery.SourceStreaming || listing.Revision == "" {
			t.Errorf("got source %+v and revision %q, want state STREAMING and a revision", listing.Source, listing.Revision)
		}
	})

	inBubble(t, "returns the clusters that match the filter", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(
			discovery.Cluster{Name: "a", Organization: "acme", Labels: map[string]string{"env": "prod"}},
			discovery.Cluster{Name: "b", Organization: "other", Labels: map[string]string{"env": "prod"}},
			discovery.Cluster{Name: "c", Organization: "acme"},
		)
		client := daemon.Client()
		for _, each := range []struct {
			filter discovery.Filter
			want   string
		}{
			{discovery.Filter{}, "a b c"},
			{discovery.Filter{Names: []string{"c", "a"}}, "a c"},
			{discovery.Filter{Organizations: []string{"acme"}}, "a c"},
			{discovery.Filter{LabelSelector: "env=prod"}, "a b"},
			{discovery.Filter{LabelSelector: "env"}, "a b"},
			{discovery.Filter{LabelSelector: "!env"}, "c"},
			{discovery.Filter{LabelSelector: "env!=prod"}, "c"},
			{discovery.Filter{LabelSelector: "env notin (prod), !x"}, "c"},
			{discovery.Filter{LabelSelector: "env in (dev, prod)", Organizations: []string{"other"}}, "b"},
		} {
			listing, err := client.List(t.Context(), each.filter)
			if err != nil {
				t.Fatal(err)
			}
			names := make([]string, 0, len(listing.Clusters))
			for _, cluster := range listing.Clusters {
				names = append(names, cluster.Name)
			}
			if got := strings.Join(names, " "); got != each.want {
				t.Errorf("%+v lists %q, want %q", each.filter, got, each.want)
			}
		}
		_, err := client.List(t.Context(), discovery.Filter{LabelSelector: "env in prod"})
		if !errors.Is(err, discovery.ErrInvalidRequest) {
			t.Errorf("List() with an invalid selector: error = %v, want ErrInvalidRequest", err)
		}
	})

	inBubble(t, "is unavailable until the daemon has a complete view", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.SetSynced(false)
		if _, err := daemon.Client().List(t.Context(), discovery.Filter{}); !errors.Is(err, discovery.ErrUnavailable) {
			t.Errorf("List() error = %v, want ErrUnavailable", err)
		}
	})
}

func TestGetReturnsTheEngagementOfAName(t *testing.T) {
	inBubble(t, "returns the engagement, the cluster and its transitions", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a"})
		daemon.Disengage("a", discovery.ReasonNotReady)
		report, err := daemon.Client().Get(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if report.Engagement.Engaged || report.Engagement.Reason != discovery.EngagementNotReady {
			t.Errorf("got engagement %+v, want not engaged with reason NOT_READY", report.Engagement)
		}
		if report.Cluster == nil || report.Cluster.Name != "a" {
			t.Errorf("got cluster %+v, want a", report.Cluster)
		}
		if len(report.Transitions) != 2 || report.Transitions[0].Type != discovery.EventEngaged ||
			report.Transitions[1].Reason != discovery.ReasonNotReady {
			t.Errorf("got transitions %+v, want ENGAGED and a disengagement with reason NOT_READY", report.Transitions)
		}
	})

	inBubble(t, "returns no cluster for a name that was never engaged", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		daemon.get = func() (*pb.GetClusterResponse, error) {
			engagement := &pb.Engagement{Reason: pb.Engagement_REASON_MALFORMED, Message: "no endpoint"}
			return &pb.GetClusterResponse{Engagement: engagement}, nil
		}
		report, err := daemon.client(t).Get(t.Context(), "a")
		if err != nil || report.Cluster != nil || report.Engagement.Reason != discovery.EngagementMalformed {
			t.Errorf("got report %+v and error %v, want no cluster and reason MALFORMED", report, err)
		}
	})

	inBubble(t, "fails for an unknown name", func(t *testing.T) {
		_, err := discoverytest.New(t).Client().Get(t.Context(), "a")
		var failed *discovery.StatusError
		if !errors.Is(err, discovery.ErrNotFound) || !errors.As(err, &failed) || failed.Code != codes.NotFound {
			t.Errorf("Get() error = %v, want ErrNotFound", err)
		}
	})
}

func TestInfoReturnsTheStateOfTheDaemon(t *testing.T) {
	inBubble(t, "returns the daemon's state, counts and limits", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a"}, discovery.Cluster{Name: "b"})
		daemon.Disengage("b", discovery.ReasonNotReady)
		info, err := daemon.Client().Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !info.Synced || info.Counts != (discovery.FleetCounts{Engaged: 1, NotReady: 1}) ||
			info.Limits.DefaultHeartbeatInterval != 30*time.Second || !info.CredentialIssuers[0].Healthy {
			t.Errorf("got %+v, want a synced daemon with 1 engaged cluster, 1 that is not ready, and a healthy issuer", info)
		}
	})
}

func TestIssueReturnsAKubeconfigOfAnEngagedCluster(t *testing.T) {
	inBubble(t, "returns a new kubeconfig for each call", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a"})
		client := daemon.Client()
		for number := range 2 {
			issued, err := client.Issue(t.Context(), "a", discovery.IssueOptions{
				TTL: time.Minute, Format: discovery.FormatEmbedded, Incarnation: daemon.Cluster("a").Incarnation,
			})
			if err != nil {
				t.Fatal(err)
			}
			token := fmt.Sprintf(`"token":"a-%d"`, number+1)
			if !strings.Contains(string(issued.Content), token) || !issued.ExpiresAt.After(time.Now()) {
				t.Errorf("%v has content %s, want %s", issued, issued.Content, token)
			}
		}
		if daemon.Issued("a") != 2 || daemon.Issued("b") != 0 {
			t.Errorf("issued kubeconfigs of a and b: %d and %d, want 2 and 0", daemon.Issued("a"), daemon.Issued("b"))
		}
	})

	inBubble(t, "fails for another incarnation, a cluster that is not engaged, and a daemon that is not synced", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a"})
		client := daemon.Client()
		_, err := client.Issue(t.Context(), "a", discovery.IssueOptions{Incarnation: "another"})
		if !errors.Is(err, discovery.ErrPreconditionFailed) {
			t.Errorf("Issue() for another incarnation: error = %v, want ErrPreconditionFailed", err)
		}
		if _, err := client.Issue(t.Context(), "b", discovery.IssueOptions{}); !errors.Is(err, discovery.ErrNotFound) {
			t.Errorf("Issue() for a cluster that is not engaged: error = %v, want ErrNotFound", err)
		}
		daemon.SetSynced(false)
		if _, err := client.Issue(t.Context(), "a", discovery.IssueOptions{}); !errors.Is(err, discovery.ErrUnavailable) {
			t.Errorf("Issue() by a daemon that is not synced: error = %v, want ErrUnavailable", err)
		}
	})

	inBubble(t, "fails for an unknown format and for an empty response", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		daemon.issue = func() (*pb.IssueKubeconfigResponse, error) { return &pb.IssueKubeconfigResponse{}, nil }
		_, err := daemon.client(t).Issue(t.Context(), "a", discovery.IssueOptions{Format: "PAPER"})
		if !errors.Is(err, discovery.ErrInvalidRequest) {
			t.Errorf("Issue() with an unknown format: error = %v, want ErrInvalidRequest", err)
		}
		if issued, err := daemon.client(t).Issue(t.Context(), "a", discovery.IssueOptions{}); err == nil {
			t.Errorf("Issue() with an empty response = %v, want an error", issued)
		}
	})

	inBubble(t, "returns an exec kubeconfig, which contains no secret", func(t *testing.T) {
		daemon := discoverytest.New(t)
		daemon.Engage(discovery.Cluster{Name: "a"})
		issued, err := daemon.Client().Issue(t.Context(), "a", discovery.IssueOptions{Format: discovery.FormatExec})
		if err != nil || !strings.Contains(string(issued.Content), `"command":"milo-discovery"`) || !issued.ExpiresAt.IsZero() {
			t.Errorf("Issue() with FormatExec = %v, %v; want the exec plugin and no expiry", issued, err)
		}
	})
}

func TestKubeconfigThatTheDaemonWouldNotWriteIsRefused(t *testing.T) {
	const (
		frame = `{"apiVersion": "v1", "kind": "Config", "current-context": "a", "users": [{"name": "a", "user": USER}],
			"clusters": [{"name": "a", "cluster": {"server": "https://a", "tls-server-name": "a"}}],
			"contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}]}`
		token  = `{"token": "secret"}`
		plugin = `{"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "milo-discovery",
			"args": ["credential", "--cluster", "a"], "env": [{"name": "MILO_DISCOVERY_ADDRESS", "value": "unix:///d"}],
			"installHint": "install it", "interactiveMode": "Never", "provideClusterInfo": false}}`
	)
	with := func(user string) string { return strings.Replace(frame, "USER", user, 1) }
	for name, each := range map[string]struct {
		format  discovery.KubeconfigFormat
		content string
		problem string // part of the expected error; empty if the kubeconfig is accepted
	}{
		"a token":                   {"", with(token), ""},
		"a certificate":             {"", with(`{"client-certificate-data": "eA==", "client-key-data": "eA=="}`), ""},
		"our plugin":                {"EXEC", with(plugin), ""},
		"our plugin for a server":   {"EXEC", with(strings.Replace(plugin, "_ADDRESS", "_CLUSTER_SERVER", 1)), ""},
		"our plugin, unrequested":   {"", with(plugin), "fields"},
		"a token, unrequested":      {"EXEC", with(token), "fields"},
		"no credential":             {"", with(`{}`), "neither a token"},
		"a certificate alone":       {"", with(`{"client-certificate-data": "eA=="}`), "neither a token"},
		"another program":           {"EXEC", with(strings.Replace(plugin, "milo-discovery", "/bin/sh", 1)), "it does not run the exec plugin"},
		"other arguments":           {"EXEC", with(strings.Replace(plugin, `"a"]`, `"b"]`, 1)), "it does not run the exec plugin"},
		"another variable":          {"EXEC", with(strings.Replace(plugin, "MILO_DISCOVERY_ADDRESS", "LD_PRELOAD", 1)), "variable"},
		"two spellings: a program":  {"EXEC", with(strings.Replace(plugin, `"command"`, `"command": "/bin/sh", "Command"`, 1)), "fields"},
		"two spellings: a variable": {"EXEC", with(strings.Replace(plugin, `{"name"`, `{"name": "LD_PRELOAD", "Name"`, 1)), "fields"},
		"a repeated field":          {"EXEC", with(strings.Replace(plugin, `"command"`, `"command": "/bin/sh", "command"`, 1)), "fields"},
		"an auth provider":          {"", with(`{"token": "secret", "auth-provider": {"name": "oidc"}}`), "fields"},
		"a token file":              {"", with(`{"tokenFile": "/etc/secret"}`), "fields"},
		"an impersonated user":      {"", with(`{"token": "secret", "as": "a", "as-groups": ["b"], "as-user-extra": {"c/d": ["e"]}}`), ""},
		"our plugin, impersonating": {"EXEC", with(strings.Replace(plugin, `{"exec"`, `{"as": "a", "exec"`, 1)), ""},
		"an impersonated UID":       {"", with(`{"token": "secret", "as": "a", "as-uid": "1"}`), "fields"},
		"a repeated extra field":    {"", with(`{"token": "secret", "as": "a", "as-user-extra": {"c": [], "c": []}}`), "fields"},
		"a proxy":                   {"", strings.Replace(with(token), `"server"`, `"proxy-url": "http://p", "server"`, 1), "fields"},
		"a CA file":                 {"", strings.Replace(with(token), `"tls-server-name"`, `"certificate-authority"`, 1), "fields"},
		"an unverified server":      {"", strings.Replace(with(token), `"server"`, `"insecure-skip-tls-verify": true, "server"`, 1), "fields"},
		"no server":                 {"", strings.Replace(with(token), "https://a", "", 1), "no server"},
		"another context":           {"", strings.Replace(with(token), `"current-context": "a"`, `"current-context": "b"`, 1), "current context"},
		"two users":                 {"", strings.Replace(with(token), `"users": [`, `"users": [{"name": "b", "user": {}}, `, 1), "not have exactly one cluster"},
		"YAML":                      {"", "apiVersion: v1\nkind: Config\n", "not JSON"},
		"empty":                     {"", "", "not JSON"},
		"trailing data":             {"", with(token) + "{}", "data after its end"},
		"the wrong type of a value": {"", with(`{"token": ["secret"]}`), "not JSON"},
	} {
		inBubble(t, name, func(t *testing.T) {
			daemon := newScriptedDaemon(t)
			kubeconfig := &pb.Kubeconfig{Cluster: "a", Kubeconfig: []byte(each.content)}
			daemon.issue = func() (*pb.IssueKubeconfigResponse, error) {
				return &pb.IssueKubeconfigResponse{Kubeconfig: kubeconfig}, nil
			}
			_, err := daemon.client(t).Issue(t.Context(), "a", discovery.IssueOptions{Format: each.format})
			if each.problem == "" {
				if err != nil {
					t.Errorf("Issue() error = %v, want none", err)
				}
				return
			}
			if !errors.Is(err, discovery.ErrUnusableKubeconfig) || !strings.Contains(err.Error(), each.problem) ||
				strings.Contains(err.Error(), "secret") {
				t.Errorf("Issue() error = %v, want ErrUnusableKubeconfig with %q and without the secret", err, each.problem)
			}
		})
	}
}

func TestKubeconfigHidesItsContent(t *testing.T) {
	kubeconfig := discovery.Kubeconfig{Cluster: "a", Content: []byte("secret"), IssuedAt: time.Unix(0, 0).UTC()}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		for _, value := range []any{kubeconfig, &kubeconfig} {
			want := `kubeconfig of cluster "a", issued 1970-01-01T00:00:00Z, expires never`
			if text := fmt.Sprintf(format, value); text != want {
				t.Errorf("%s is %q, want %q", format, text, want)
			}
		}
	}
	if value := kubeconfig.LogValue().String(); strings.Contains(value, "secret") {
		t.Errorf("got log value %q, want no secret", value)
	}
}

func TestCallsReconnectTimeOutAndFailWithTheStatus(t *testing.T) {
	inBubble(t, "a call reconnects after a restart of the daemon", func(t *testing.T) {
		daemon := discoverytest.New(t)
		client := daemon.Client()
		for range 3 {
			if _, err := client.Info(t.Context()); err != nil {
				t.Fatal(err)
			}
			daemon.Restart()
		}
	})

	inBubble(t, "a call fails at once while the daemon is stopped, and succeeds after its start", func(t *testing.T) {
		daemon := discoverytest.New(t)
		client := daemon.Client()
		daemon.Stop()
		begun := time.Now()
		if _, err := client.Info(t.Context()); !errors.Is(err, discovery.ErrUnavailable) || discovery.IsTerminal(err) {
			t.Errorf("Info() error = %v, want ErrUnavailable, which is not terminal", err)
		}
		if waited := time.Since(begun); waited != 0 {
			t.Errorf("Info() failed after %v, want at once", waited)
		}
		daemon.Start()
		if _, err := client.Info(t.Context()); err != nil {
			t.Error(err)
		}
	})

	inBubble(t, "concurrent calls succeed after a restart of the daemon", func(t *testing.T) {
		daemon := discoverytest.New(t)
		client := daemon.Client()
		if _, err := client.Info(t.Context()); err != nil {
			t.Fatal(err)
		}
		daemon.Restart()
		var calls sync.WaitGroup
		for range 50 {
			calls.Go(func() {
				if _, err := client.Info(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		calls.Wait()
	})

	inBubble(t, "a call without a response times out", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		released := make(chan struct{})
		daemon.get = func() (*pb.GetClusterResponse, error) { <-released; return nil, status.Error(codes.Aborted, "") }
		defer close(released)
		begun := time.Now()
		_, err := daemon.client(t).Get(t.Context(), "a")
		if !errors.Is(err, discovery.ErrTimedOut) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Get() error = %v, want ErrTimedOut and DeadlineExceeded", err)
		}
		if waited := time.Since(begun); waited != 10*time.Second {
			t.Errorf("Get() failed after %v, want 10s", waited)
		}
	})

	inBubble(t, "a call is canceled with its context", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		called, released := make(chan struct{}), make(chan struct{})
		daemon.get = func() (*pb.GetClusterResponse, error) {
			close(called)
			<-released
			return nil, status.Error(codes.Aborted, "")
		}
		defer close(released)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-called; cancel() }()
		if _, err := daemon.client(t).Get(ctx, "a"); !errors.Is(err, context.Canceled) {
			t.Errorf("Get() error = %v, want Canceled", err)
		}
	})

	inBubble(t, "Close cancels calls in flight, and later calls fail", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		called, released := make(chan struct{}), make(chan struct{})
		daemon.get = func() (*pb.GetClusterResponse, error) {
			close(called)
			<-released
			return nil, status.Error(codes.Aborted, "")
		}
		defer close(released)
		client := daemon.client(t)
		go func() { <-called; _ = client.Close() }()
		if _, err := client.Get(t.Context(), "a"); !errors.Is(err, discovery.ErrClosed) {
			t.Errorf("Get() in flight during Close: error = %v, want ErrClosed", err)
		}
		if _, err := client.Get(t.Context(), "a"); !errors.Is(err, discovery.ErrClosed) {
			t.Errorf("Get() after Close: error = %v, want ErrClosed", err)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})

	inBubble(t, "Close cancels calls in flight on a connection that failed for another call", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		calls, released := 0, make(chan struct{})
		called := make(chan struct{})
		daemon.get = func() (*pb.GetClusterResponse, error) {
			if calls++; calls == 1 {
				close(called)
				<-released
			}
			return nil, status.Error(codes.Unavailable, "as if the connection were lost")
		}
		defer close(released)
		client := daemon.clientWith(t, discovery.Options{Timeout: -1})
		ended := make(chan error)
		go func() {
			_, err := client.Get(t.Context(), "a")
			ended <- err
		}()
		<-called
		if _, err := client.Get(t.Context(), "b"); !errors.Is(err, discovery.ErrUnavailable) {
			t.Errorf("Get() error = %v, want ErrUnavailable", err)
		}
		_ = client.Close()
		if err := <-ended; !errors.Is(err, discovery.ErrClosed) {
			t.Errorf("Get() in flight during Close: error = %v, want ErrClosed", err)
		}
	})

	inBubble(t, "an error contains the reason, violations and retry delay of the status details", func(t *testing.T) {
		daemon := newScriptedDaemon(t)
		daemon.get = func() (*pb.GetClusterResponse, error) {
			violation := &errdetails.BadRequest_FieldViolation{Field: "name", Description: "too long"}
			detailed, err := status.New(codes.InvalidArgument, "name: too long").WithDetails(
				&errdetails.ErrorInfo{Reason: "INVALID_REQUEST", Domain: "discovery.miloapis.com"},
				&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{violation}},
				&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)},
			)
			if err != nil {
				return nil, err
			}
			return nil, detailed.Err()
		}
		_, err := daemon.client(t).Get(t.Context(), "a")
		var failed *discovery.StatusError
		if !errors.As(err, &failed) {
			t.Fatalf("Get() error = %v, want a StatusError", err)
		}
		violations := []discovery.FieldViolation{{Field: "name", Description: "too long"}}
		if failed.Reason != "INVALID_REQUEST" || failed.RetryAfter != time.Second ||
			!slices.Equal(failed.Violations, violations) || status.Code(err) != codes.InvalidArgument {
			t.Errorf("got %+v, want reason INVALID_REQUEST, RetryAfter 1s and violations %v", failed, violations)
		}
		if err.Error() != "GetCluster: InvalidArgument: name: too long" {
			t.Errorf("got error %q, want the method, the code and the message of the status", err)
		}
	})

	inBubble(t, "calls fail with the error of Daemon.Fail", func(t *testing.T) {
		daemon := discoverytest.New(t)
		client := daemon.Client()
		calls := map[string]func() error{
			"ListClusters":    func() error { _, err := client.List(t.Context(), discovery.Filter{}); return err },
			"GetCluster":      func() error { _, err := client.Get(t.Context(), "a"); return err },
			"GetServerInfo":   func() error { _, err := client.Info(t.Context()); return err },
			"IssueKubeconfig": func() error { _, err := client.Issue(t.Context(), "a", discovery.IssueOptions{}); return err },
			"WatchClusters": func() error {
				return client.Watch(t.Context(), discovery.WatchOptions{}, func([]discovery.Event) {})
			},
		}
		for method, call := range calls {
			daemon.Fail(method, discoverytest.Error(codes.PermissionDenied, "FORBIDDEN", "no"))
			if err := call(); !errors.Is(err, discovery.ErrPermissionDenied) {
				t.Errorf("%s error = %v, want ErrPermissionDenied", method, err)
			}
			daemon.Fail(method, nil)
		}
		if _, err := client.Info(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
