package multicluster_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/multicluster"
)

// addressVariable is the environment variable for the address of a daemon that has engaged the project alpha, and
// issues kubeconfigs for it.
const addressVariable = "MILO_DISCOVERY_TEST_ADDRESS"

func TestModuleWorksWithARealDaemon(t *testing.T) {
	address := os.Getenv(addressVariable)
	if address == "" {
		t.Skip(addressVariable + " is not set: tests/end_to_end/go_modules sets it")
	}
	env := newEnvironment(t) // its API server serves only the manager's own cluster
	daemon, err := discovery.Dial(discovery.Options{Address: address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = daemon.Close() })
	provider, err := multicluster.New(multicluster.Options{
		Client: daemon, Kubeconfigs: true, Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	mgr := env.manager(provider, nil)
	env.feeder(mgr)
	ctx := t.Context()
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.ConfigMap{}, "type", typeOf); err != nil {
		t.Fatal(err)
	}
	env.start(mgr)
	project := env.untilGot(provider, "alpha").GetClient()
	dog := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "dog"}, Data: map[string]string{"type": "animal"}}
	if err := project.Create(ctx, dog); err != nil {
		t.Fatal(err)
	}
	fed := func() error {
		found := &corev1.ConfigMap{}
		if err := project.Get(ctx, client.ObjectKeyFromObject(dog), found); err != nil {
			return err
		}
		if found.Data["stomach"] != "food" {
			return fmt.Errorf("got data.stomach %q, want food", found.Data["stomach"])
		}
		return nil
	}
	within(t, "the dog to be fed", fed)
	hungry := dog.DeepCopy()
	within(t, "the dog to be changed", func() error {
		if err := project.Get(ctx, client.ObjectKeyFromObject(dog), hungry); err != nil {
			return err
		}
		hungry.Data["stomach"] = ""
		return project.Update(ctx, hungry)
	})
	within(t, "the dog to be fed again", fed)
	anna := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "anna"}, Data: map[string]string{"type": "human"}}
	if err := project.Create(ctx, anna); err != nil {
		t.Fatal(err)
	}
	listHumans(ctx, env, provider, "alpha", 1)
	if err := errors.Join(project.Delete(ctx, anna), project.Delete(ctx, dog)); err != nil {
		t.Fatal(err)
	}
	listHumans(ctx, env, provider, "alpha", 0)
}
