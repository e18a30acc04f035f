package multicluster_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	mcbuilder "sigs.k8s.io/multicluster-runtime/pkg/builder"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	mcreconcile "sigs.k8s.io/multicluster-runtime/pkg/reconcile"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	"go.miloapis.com/discovery/multicluster"
	"go.miloapis.com/discovery/multicluster/apitest"
)

// An operator with a fake daemon and fake API servers, all in the process of its test.
func ExampleProvider() {
	api := apitest.Start(0)
	defer api.Close()
	t := &testing.T{} // in a test, use the test's t, which stops the daemon and closes the client at its end
	daemon := discoverytest.New(t)
	defer daemon.Stop()
	client := daemon.Client()
	defer func() { _ = client.Close() }()
	daemon.Engage(discovery.Cluster{Name: "alpha", Endpoint: api.Endpoint("alpha")})

	provider, err := multicluster.New(multicluster.Options{
		Client:            client,
		ProjectRestConfig: api.Config(""), // its host is not used
		Registerer:        prometheus.NewRegistry(),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	options := manager.Options{Metrics: metricsserver.Options{BindAddress: "0"}}
	mgr, err := mcmanager.New(api.Config("operators"), provider, options)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	worked := 0
	work := func(_ context.Context, request mcreconcile.Request) (reconcile.Result, error) {
		fmt.Println("working in", request.ClusterName, "on the namespace", request.Name)
		if worked++; worked == 2 {
			stop()
		}
		return reconcile.Result{}, nil
	}
	err = mcbuilder.ControllerManagedBy(mgr).Named("example").For(&corev1.Namespace{}).
		Complete(multicluster.Reconciler(provider, &corev1.Namespace{}, mcreconcile.Func(work)))
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := mgr.Start(ctx); err != nil {
		fmt.Println(err)
	}
	// Unordered output:
	// working in alpha on the namespace default
	// working in alpha on the namespace kube-system
}

// An operator with credentials that the daemon issues, and with options for each cluster.
func ExampleNew() {
	provider, err := multicluster.New(multicluster.Options{
		Address:        "unix:///run/milo-discovery/discovery.sock",
		Kubeconfigs:    true,
		ClusterOptions: []cluster.Option{func(o *cluster.Options) { o.Client.DryRun = new(bool) }},
		Registerer:     prometheus.NewRegistry(),
	})
	fmt.Println(provider != nil, err)
	_, err = multicluster.New(multicluster.Options{ProjectRestConfig: &rest.Config{}, Kubeconfigs: true})
	fmt.Println(err)
	// Output:
	// true <nil>
	// exactly one of Options.ProjectRestConfig, Options.Kubeconfigs and Options.ConfigFor is required
}
