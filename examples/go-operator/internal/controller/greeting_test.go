package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	mccontroller "sigs.k8s.io/multicluster-runtime/pkg/controller"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	discoverymc "go.miloapis.com/discovery/multicluster"
	"go.miloapis.com/discovery/multicluster/apitest"
	"go.miloapis.com/discovery/multicluster/example/api/v1alpha1"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	goleak.VerifyTestMain(m)
}

// operator is the running controller, with a fake daemon and a fake API server in this process.
type operator struct {
	t       *testing.T
	daemon  *discoverytest.Daemon
	api     *apitest.Server
	scheme  *runtime.Scheme
	mu      sync.Mutex
	cleaned []string
}

func start(t *testing.T) *operator {
	t.Helper()
	o := &operator{t: t, daemon: discoverytest.New(t), api: apitest.Start(0), scheme: runtime.NewScheme()}
	t.Cleanup(o.api.Close)
	o.api.Serve(v1alpha1.GroupVersion.WithKind("Greeting"))
	if err := errors.Join(clientgoscheme.AddToScheme(o.scheme), v1alpha1.AddToScheme(o.scheme)); err != nil {
		t.Fatal(err)
	}
	provider, err := discoverymc.New(discoverymc.Options{
		Client: o.daemon.Client(), ProjectRestConfig: o.config("local"), Registerer: prometheus.NewRegistry(),
		ClusterOptions: []cluster.Option{func(c *cluster.Options) { c.Scheme = o.scheme }},
	})
	if err != nil {
		t.Fatal(err)
	}
	mgr, err := mcmanager.New(o.config("local"), provider, ctrl.Options{
		Scheme: o.scheme, Metrics: metricsserver.Options{BindAddress: "0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	// Before controller-runtime 0.25, a priority queue can leak goroutines when it shuts down (controller-runtime#3538).
	skip, usePriorityQueue := true, false
	greetings := &GreetingReconciler{Manager: mgr, Projects: provider, CleanUp: o.cleanUp}
	options := mccontroller.Options{SkipNameValidation: &skip, UsePriorityQueue: &usePriorityQueue}
	if err := greetings.SetupWithManager(provider, options); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return o
}

func (o *operator) config(project string) *rest.Config {
	return &rest.Config{Host: o.api.Endpoint(project), TLSClientConfig: rest.TLSClientConfig{CAData: o.api.CA()}}
}

func (o *operator) engage(project string) {
	o.daemon.Engage(discovery.Cluster{Name: project, Endpoint: o.api.Endpoint(project), Organization: "acme"})
}

func (o *operator) cleanUp(_ context.Context, project, name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cleaned = append(o.cleaned, project+"/"+name)
	return nil
}

// user returns a client with which the test acts as a user of the project.
func (o *operator) user(project string) client.Client {
	o.t.Helper()
	c, err := client.New(o.config(project), client.Options{Scheme: o.scheme})
	if err != nil {
		o.t.Fatal(err)
	}
	return c
}

func within(t *testing.T, what string, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited 30 s for %s: %v", what, err)
		}
	}
}

func greeting() *v1alpha1.Greeting {
	made := &v1alpha1.Greeting{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hello"}}
	made.Spec.Text = "Hello"
	return made
}

func (o *operator) untilGreeted(c client.Client, project, text string) {
	o.t.Helper()
	key := client.ObjectKeyFromObject(greeting())
	within(o.t, "the greeting in "+project, func() error {
		found, made := &corev1.ConfigMap{}, &v1alpha1.Greeting{}
		if err := errors.Join(c.Get(o.t.Context(), key, found), c.Get(o.t.Context(), key, made)); err != nil {
			return err
		}
		ready := meta.IsStatusConditionTrue(made.Status.Conditions, v1alpha1.ConditionReady)
		if !ready || found.Data["text"] != text || found.Data["project"] != project || found.Data["organization"] != "acme" {
			return fmt.Errorf("ConfigMap data %v and Greeting status %v, want text %q and Ready", found.Data, made.Status, text)
		}
		if !metav1.IsControlledBy(found, made) {
			return errors.New("the Greeting is not the controller of the ConfigMap")
		}
		return nil
	})
}

func TestGreetingsAreReconciledInEachProject(t *testing.T) {
	o := start(t)
	for _, project := range []string{"alpha", "beta"} {
		if err := o.user(project).Create(t.Context(), greeting()); err != nil {
			t.Fatal(err)
		}
		o.engage(project)
	}
	o.untilGreeted(o.user("alpha"), "alpha", "Hello")
	o.untilGreeted(o.user("beta"), "beta", "Hello")
}

func TestDeletedConfigMapIsRecreated(t *testing.T) {
	o := start(t)
	o.engage("alpha")
	user := o.user("alpha")
	if err := user.Create(t.Context(), greeting()); err != nil {
		t.Fatal(err)
	}
	o.untilGreeted(user, "alpha", "Hello")
	if err := user.Delete(t.Context(), &corev1.ConfigMap{ObjectMeta: greeting().ObjectMeta}); err != nil {
		t.Fatal(err)
	}
	o.untilGreeted(user, "alpha", "Hello")
}

func TestGreetingIsCleanedUpBeforeItIsDeleted(t *testing.T) {
	o := start(t)
	o.engage("alpha")
	user := o.user("alpha")
	if err := user.Create(t.Context(), greeting()); err != nil {
		t.Fatal(err)
	}
	o.untilGreeted(user, "alpha", "Hello")
	if err := user.Delete(t.Context(), greeting()); err != nil {
		t.Fatal(err)
	}
	within(t, "the Greeting to be deleted", func() error {
		err := user.Get(t.Context(), client.ObjectKeyFromObject(greeting()), &v1alpha1.Greeting{})
		if err == nil {
			return errors.New("Get succeeded, want NotFound")
		}
		return client.IgnoreNotFound(err)
	})
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.cleaned) == 0 || o.cleaned[0] != "alpha/hello" {
		t.Errorf("got %v cleaned up, want alpha/hello", o.cleaned)
	}
}
