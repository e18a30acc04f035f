package multicluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	"go.miloapis.com/discovery/multicluster"
)

func TestPushedKubeconfigIsUsedWithoutReopeningWatches(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	project := env.api.Project("alpha")
	project.SetTokens(token("alpha", 1), token("alpha", 2))
	provider := env.provider(withKubeconfigs)
	noted := env.startFeeding(provider)
	watches, name := 0, "dog"
	within(t, "the watch after the first list", func() error {
		watches, name = project.Count("watch configmaps"), name+"s"
		env.animal("alpha", name)
		env.untilFed("alpha", name)
		if project.Count("watch configmaps") != watches || project.Watches() != 1 {
			return errors.New("the watch was opened during this check")
		}
		return nil
	})
	env.daemon.Rotate("alpha")
	within(t, "the new token to be used", func() error {
		live := client.NewNamespacedClient(env.untilGot(provider, "alpha").GetClient(), "default")
		if err := live.Create(t.Context(), &corev1.ConfigMap{}); err == nil {
			return errors.New("a ConfigMap without a name was created")
		}
		if got := project.LastToken(); got != token("alpha", 2) {
			return fmt.Errorf("got token %s, want %s", got, token("alpha", 2))
		}
		return nil
	})
	project.SetTokens(token("alpha", 2)) // the former token expires while the watch is open
	env.animal("alpha", "cat")
	env.untilFed("alpha", "cat")
	if got := project.Count("watch configmaps"); got != watches || project.Watches() != 1 || project.Count("refused") != 0 || noted.count() != 1 {
		t.Errorf("%d watches opened, %d open, %d requests refused, %d Engage calls; want %d, 1, 0, 1",
			got, project.Watches(), project.Count("refused"), noted.count(), watches)
	}
}

func TestRevokedTokenIsRenewedAndRequestRetriedOnce(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	project := env.api.Project("alpha")
	registry := prometheus.NewRegistry()
	provider := env.provider(func(o *multicluster.Options) {
		withKubeconfigs(o)
		o.Registerer = registry
	})
	env.start(env.manager(provider, nil))
	cl := env.untilGot(provider, "alpha")
	issued := env.daemon.Issued("alpha")
	project.SetTokens(token("alpha", issued+1))
	ctx := t.Context()
	made := &corev1.ConfigMap{}
	made.Namespace, made.Name = "default", "made"
	if err := cl.GetClient().Create(ctx, made); err != nil {
		t.Fatalf("Create() with a revoked token: error = %v, want a retry with a new token", err)
	}
	if refused, now := project.Count("refused"), env.daemon.Issued("alpha"); refused != 1 || now != issued+1 {
		t.Errorf("%d requests refused, %d kubeconfigs issued; want 1 and 1", refused, now-issued)
	}
	want := "# HELP milo_discovery_client_credential_renewals_total Kubeconfigs requested from milo-discoveryd, " +
		"by result; pushed kubeconfigs are not counted.\n# TYPE milo_discovery_client_credential_renewals_total counter\n" +
		"milo_discovery_client_credential_renewals_total{result=\"failed\"} 0\n" +
		"milo_discovery_client_credential_renewals_total{result=\"renewed\"} 1\n" +
		"milo_discovery_client_credential_renewals_total{result=\"unchanged\"} 0\n"
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "milo_discovery_client_credential_renewals_total"); err != nil {
		t.Error(err)
	}
	// If the daemon has no newer token either, the 401 is returned, and requests to the daemon are rate limited.
	project.SetTokens("nobody has this one")
	for range 10 {
		if err := cl.GetAPIReader().Get(ctx, client.ObjectKeyFromObject(made), made); err == nil {
			t.Fatal("Get() succeeded without an accepted token")
		}
	}
	if again := env.daemon.Issued("alpha") - issued; again > 3 {
		t.Errorf("%d kubeconfigs were requested, want at most 3", again)
	}
}

func TestClusterWaitsForItsFirstKubeconfig(t *testing.T) {
	env := newEnvironment(t)
	env.daemon.Fail("IssueKubeconfig", discoverytest.Error(codes.Unavailable, "CREDENTIALS_UNAVAILABLE", "the backend is down"))
	env.daemon.SetKubeconfigs(func(discovery.Cluster, int) discovery.Kubeconfig { return discovery.Kubeconfig{Content: []byte("{}")} })
	env.engage("alpha")
	provider := env.provider(withKubeconfigs)
	env.start(env.manager(provider, nil))
	within(t, "the debug handler to show the failure", func() error { return failure(provider, "alpha", "get a kubeconfig") })
	env.untilGone(provider, "alpha")
	env.daemon.SetKubeconfigs(func(cluster discovery.Cluster, number int) discovery.Kubeconfig {
		return discovery.Kubeconfig{Content: env.kubeconfig(cluster.Endpoint, token(cluster.Name, number))}
	})
	env.daemon.Fail("IssueKubeconfig", nil)
	env.untilGot(provider, "alpha")
}

// hostile contains users of kubeconfigs that the provider must reject, by kind: some would run a program or read a file
// in the operator's process.
var hostile = map[string]string{
	"exec":          `"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh", "args": ["-c", "touch PLACE"], "interactiveMode": "Never"}`,
	"auth provider": `"auth-provider": {"name": "oidc", "config": {"idp-issuer-url": "https://127.0.0.1"}}`,
	"token file":    `"tokenFile": "PLACE"`,
	"certificate":   `"client-certificate": "PLACE", "client-key": "PLACE"`,
	"impersonation": `"token": "x", "as-groups": ["system:masters"]`,
	"nothing":       ``,
}

func TestHostileKubeconfigsAreRejected(t *testing.T) {
	for name, user := range hostile {
		t.Run(name, func(t *testing.T) {
			env := newEnvironment(t)
			place := t.TempDir() + "/touched"
			user := strings.ReplaceAll(user, "PLACE", place)
			env.daemon.SetKubeconfigs(func(cluster discovery.Cluster, _ int) discovery.Kubeconfig {
				good := string(env.kubeconfig(cluster.Endpoint, "x"))
				if cluster.Name == "good" {
					return discovery.Kubeconfig{Content: []byte(good)}
				}
				return discovery.Kubeconfig{Content: []byte(strings.Replace(good, `"token": "x"`, user, 1))}
			})
			env.engage("alpha", "good")
			provider := env.provider(withKubeconfigs)
			env.start(env.manager(provider, nil))
			env.untilGot(provider, "good")
			within(t, "the refusal", func() error { return failure(provider, "alpha", "kubeconfig refused") })
			env.untilGone(provider, "alpha")
			if _, err := os.Stat(place); err == nil {
				t.Fatal("the command of the kubeconfig was run")
			}
		})
	}
}

// failure returns nil if the debug handler shows the named cluster as failed, with a message that contains want, and an
// error otherwise.
func failure(provider *multicluster.Provider, name, want string) error {
	response := httptest.NewRecorder()
	provider.DebugHandler().ServeHTTP(response, httptest.NewRequest(http.MethodGet, "/", nil))
	var shown []struct{ Name, State, Failure string }
	if err := json.Unmarshal(response.Body.Bytes(), &shown); err != nil {
		return err
	}
	for _, each := range shown {
		if each.Name == name && each.State == "failed" && strings.Contains(each.Failure, want) {
			return nil
		}
	}
	return fmt.Errorf("got debug state %v", shown)
}

func TestDebugHandlerListsTheNamesOfEngagedClusters(t *testing.T) {
	env := newEnvironment(t)
	env.engage("beta", "alpha")
	provider := env.provider(nil)
	env.start(env.manager(provider, nil))
	env.untilGot(provider, "alpha")
	env.untilGot(provider, "beta")
	response := httptest.NewRecorder()
	provider.DebugHandler().ServeHTTP(response, httptest.NewRequest(http.MethodGet, "/?format=names", nil))
	if got := response.Body.String(); got != "alpha\nbeta\n" {
		t.Errorf("the debug handler lists %q, want alpha and beta", got)
	}
}

func TestClustersShareConnectionsWithoutOwnTransports(t *testing.T) {
	for name, test := range map[string]struct {
		change      func(*multicluster.Options)
		least, most int
	}{
		"from a rest config": {nil, 1, 2},
		"from a rest config with a proxy function, which client-go does not share": {
			func(o *multicluster.Options) { o.ProjectRestConfig.Proxy = http.ProxyFromEnvironment }, 1, 2,
		},
		"from kubeconfigs":   {withKubeconfigs, 1, 2},
		"with OwnTransports": {func(o *multicluster.Options) { o.OwnTransports = true }, 20, 30},
	} {
		t.Run(name, func(t *testing.T) {
			env := newEnvironment(t)
			names := make([]string, 20)
			for i := range names {
				names[i] = fmt.Sprintf("project-%d", i)
				env.animal(names[i], "dog")
			}
			env.engage(names...)
			provider := env.provider(test.change)
			mgr := env.manager(provider, nil)
			env.feeder(mgr)
			// The manager's own client already has a connection.
			before := env.api.Connections()
			env.start(mgr)
			for _, each := range names {
				env.untilFed(each, "dog")
			}
			// If several connections were dialed concurrently, all but one are closed.
			within(t, fmt.Sprintf("%d to %d connections", test.least, test.most), func() error {
				if got := env.api.Connections() - before; got < test.least || got > test.most {
					return fmt.Errorf("got %d connections", got)
				}
				return nil
			})
		})
	}
}

// identities are the ways in which a provider authenticates in clusters.
var identities = map[string]func(*environment) func(*multicluster.Options){
	"rest config": func(*environment) func(*multicluster.Options) {
		return func(o *multicluster.Options) { o.ProjectRestConfig.BearerToken = "secret" }
	},
	"rest config with OwnTransports": func(*environment) func(*multicluster.Options) {
		return func(o *multicluster.Options) { o.ProjectRestConfig.BearerToken, o.OwnTransports = "secret", true }
	},
	"kubeconfigs": func(*environment) func(*multicluster.Options) { return withKubeconfigs },
	"function": func(env *environment) func(*multicluster.Options) {
		return func(o *multicluster.Options) {
			o.ProjectRestConfig = nil
			o.ConfigFor = func(_ context.Context, cluster discovery.Cluster) (*rest.Config, error) {
				config := env.config()
				config.Host, config.BearerToken = cluster.Endpoint, "secret"
				return config, nil
			}
		}
	},
}

func TestRedirectsOfClustersAreNotFollowed(t *testing.T) {
	for name, identity := range identities {
		t.Run(name, func(t *testing.T) {
			env := newEnvironment(t)
			var elsewhere atomic.Int64
			plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
			t.Cleanup(plain.Close)
			env.api.Project("beta").Answer("secrets", func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) })
			env.engage("alpha")
			provider := env.provider(identity(env))
			env.untilEngaged(env.startNoting(provider), "alpha")
			cl := env.untilGot(provider, "alpha")
			ctx := t.Context()
			object := &corev1.Secret{}
			object.Namespace, object.Name = "default", "one"
			if err := cl.GetClient().Create(ctx, object.DeepCopy()); err != nil {
				t.Fatal(err)
			}
			for _, target := range []string{env.api.Endpoint("beta"), plain.URL} {
				for _, status := range []int{http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
					env.api.Project("alpha").Answer("secrets", func(w http.ResponseWriter, r *http.Request) {
						http.Redirect(w, r, target+"/api/v1/namespaces/default/secrets/one", status)
					})
					for method, err := range map[string]error{
						"GET":    cl.GetAPIReader().Get(ctx, client.ObjectKeyFromObject(object), object.DeepCopy()),
						"POST":   cl.GetClient().Create(ctx, object.DeepCopy()),
						"PUT":    cl.GetClient().Update(ctx, object.DeepCopy()),
						"DELETE": cl.GetClient().Delete(ctx, object.DeepCopy()),
					} {
						if err == nil || !strings.Contains(err.Error(), "redirect refused") {
							t.Errorf("%s with a redirect %d: error = %v, want redirect refused", method, status, err)
						}
					}
				}
			}
			if got := elsewhere.Load(); got > 0 {
				t.Errorf("got %d requests at another project or server, want none", got)
			}
		})
	}
}

// TestClientOfEndedEngagementSendsNoRequests uses a cluster that a handler kept after the engagement ended.
func TestClientOfEndedEngagementSendsNoRequests(t *testing.T) {
	for name, identity := range identities {
		for end, change := range map[string]func(*environment){
			"disengaged": func(env *environment) { env.daemon.Disengage("alpha", discovery.ReasonRevoked) },
			"replaced": func(env *environment) {
				env.daemon.Replace(discovery.Cluster{Name: "alpha", UID: "another", Endpoint: env.api.Endpoint("alpha")})
			},
			"moved": func(env *environment) { env.move("alpha", "elsewhere") },
		} {
			t.Run(name+" "+end, func(t *testing.T) {
				env := newEnvironment(t)
				env.engage("alpha")
				provider := env.provider(identity(env))
				env.untilEngaged(env.startNoting(provider), "alpha")
				kept := env.untilGot(provider, "alpha")
				object := &corev1.ConfigMap{}
				object.Namespace, object.Name = "default", "early"
				if err := kept.GetClient().Create(t.Context(), object); err != nil {
					t.Fatal(err)
				}
				change(env)
				within(t, "the end of the engagement", func() error {
					if found, err := provider.Get(t.Context(), "alpha"); err == nil && found == kept {
						return errors.New("Get returns the cluster of the engagement")
					}
					return nil
				})
				object = &corev1.ConfigMap{}
				object.Namespace, object.Name = "default", "late"
				var ended *multicluster.Disengaged
				if err := kept.GetClient().Create(t.Context(), object); !errors.As(err, &ended) {
					t.Errorf("Create() error = %v, want Disengaged", err)
				}
				for _, project := range []string{"alpha", "elsewhere"} {
					if env.data(project, "late") != nil {
						t.Errorf("got the object in project %s, want it nowhere", project)
					}
				}
			})
		}
	}
}

// TestCredentialIsIssuedOnlyForItsEngagement sends a request that is rejected after the project was replaced, and
// before the provider was notified.
func TestCredentialIsIssuedOnlyForItsEngagement(t *testing.T) {
	env := newEnvironment(t)
	env.engage("alpha")
	provider := env.provider(withKubeconfigs)
	env.untilEngaged(env.startNoting(provider), "alpha")
	cl := env.untilGot(provider, "alpha")
	object := &corev1.ConfigMap{}
	object.Namespace, object.Name = "default", "early"
	if err := cl.GetClient().Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	env.daemon.SetSilent(true)
	env.daemon.Replace(discovery.Cluster{Name: "alpha", UID: "another", Endpoint: env.api.Endpoint("alpha")})
	issued := env.daemon.Issued("alpha")
	env.api.Project("alpha").SetTokens(token("alpha", issued+1))
	object = &corev1.ConfigMap{}
	object.Namespace, object.Name = "default", "late"
	if err := cl.GetClient().Create(t.Context(), object); !apierrors.IsUnauthorized(err) {
		t.Errorf("Create() error = %v, want Unauthorized", err)
	}
	if got := env.daemon.Issued("alpha"); got != issued {
		t.Errorf("%d kubeconfigs of the next project were issued, want none", got-issued)
	}
}

func TestCredentialIsSentToTheServerOfItsKubeconfig(t *testing.T) {
	env := newEnvironment(t)
	env.daemon.SetKubeconfigs(func(cluster discovery.Cluster, number int) discovery.Kubeconfig {
		return discovery.Kubeconfig{Content: env.kubeconfig(env.api.Endpoint("behind-"+cluster.Name), token(cluster.Name, number))}
	})
	env.engage("alpha")
	env.startFeeding(env.provider(withKubeconfigs))
	env.animal("behind-alpha", "dog")
	env.untilFed("behind-alpha", "dog")
	if got := env.api.Project("alpha").LastToken(); got != "" {
		t.Errorf("got token %q at the endpoint of the cluster, want no request", got)
	}
}

func TestSeveralProvidersCanShareARegistryWithWrappedLabels(t *testing.T) {
	registry := prometheus.NewRegistry()
	for _, name := range []string{"own", "webhooks"} {
		registerer := prometheus.WrapRegistererWith(prometheus.Labels{"provider": name}, registry)
		if _, err := multicluster.New(multicluster.Options{ProjectRestConfig: &rest.Config{}, Registerer: registerer}); err != nil {
			t.Error(err)
		}
	}
}

func TestNewRejectsInvalidOptions(t *testing.T) {
	daemon := discoverytest.New(t)
	for name, options := range map[string]multicluster.Options{
		"none": {},
		"two":  {ProjectRestConfig: &rest.Config{}, Kubeconfigs: true},
	} {
		options.Client = daemon.Client()
		if _, err := multicluster.New(options); err == nil {
			t.Errorf("New() with identities %q succeeded", name)
		}
	}
	_, err := multicluster.New(multicluster.Options{Kubeconfigs: true, Client: daemon.Client(), SyncTimeout: -time.Second})
	if err == nil {
		t.Error("New() with a negative SyncTimeout succeeded")
	}
}

func TestConfigForCanReturnAnotherHostThanTheEndpoint(t *testing.T) {
	env := newEnvironment(t)
	env.daemon.Engage(discovery.Cluster{Name: "alpha"}) // its endpoint cannot be resolved
	provider := env.provider(func(o *multicluster.Options) {
		o.ProjectRestConfig = nil
		o.ConfigFor = func(_ context.Context, cluster discovery.Cluster) (*rest.Config, error) {
			config := env.config()
			config.Host = env.api.Endpoint(cluster.Name)
			return config, nil
		}
	})
	env.startFeeding(provider)
	env.animal("alpha", "dog")
	env.untilFed("alpha", "dog")
}

func TestNewSucceedsAfterAnAttemptWithUnreadableFiles(t *testing.T) {
	options := multicluster.Options{
		Client:            discoverytest.New(t).Client(),
		ProjectRestConfig: &rest.Config{TLSClientConfig: rest.TLSClientConfig{CAFile: t.TempDir() + "/missing"}},
		Registerer:        prometheus.NewRegistry(),
	}
	if _, err := multicluster.New(options); err == nil {
		t.Fatal("New() with a missing CA file succeeded")
	}
	options.ProjectRestConfig = &rest.Config{}
	if _, err := multicluster.New(options); err != nil {
		t.Errorf("New() after a failed attempt: error = %v", err)
	}
}
