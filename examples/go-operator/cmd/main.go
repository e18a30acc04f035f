// Operator reconciles Greetings in all Milo projects that milo-discoveryd reports.
package main

import (
	"context"
	"flag"
	"net/http"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	mccontroller "sigs.k8s.io/multicluster-runtime/pkg/controller"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"

	discoverymc "go.miloapis.com/discovery/multicluster"
	"go.miloapis.com/discovery/multicluster/example/api/v1alpha1"
	"go.miloapis.com/discovery/multicluster/example/internal/controller"
)

func main() {
	var metricsAddress, probeAddress string
	var leaderElection bool
	flag.StringVar(&metricsAddress, "metrics-bind-address", ":8080", "address at which /metrics and /debug/clusters are served")
	flag.StringVar(&probeAddress, "health-probe-bind-address", ":8081", "address at which /healthz and /readyz are served")
	flag.BoolVar(&leaderElection, "leader-elect", false, "run controllers on one replica at a time")
	flag.Parse()
	ctrl.SetLogger(zap.New())
	if err := run(ctrl.SetupSignalHandler(), metricsAddress, probeAddress, leaderElection); err != nil {
		ctrl.Log.Error(err, "operator failed")
		os.Exit(1)
	}
}

func run(ctx context.Context, metricsAddress, probeAddress string, leaderElection bool) error {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return err
		}
	}
	// The environment variable MILO_DISCOVERY_ADDRESS has the daemon's address; the daemon issues the credentials.
	provider, err := discoverymc.New(discoverymc.Options{
		Kubeconfigs:    true,
		ClusterOptions: []cluster.Option{func(o *cluster.Options) { o.Scheme = scheme }},
	})
	if err != nil {
		return err
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	mgr, err := mcmanager.New(config, provider, ctrl.Options{
		Scheme:                 scheme,
		HealthProbeBindAddress: probeAddress,
		LeaderElection:         leaderElection,
		LeaderElectionID:       "greeting.example.miloapis.com",
		Metrics: metricsserver.Options{
			BindAddress:   metricsAddress,
			ExtraHandlers: map[string]http.Handler{"/debug/clusters": provider.DebugHandler()},
		},
	})
	if err != nil {
		return err
	}
	// Replicas that are not the leader have to become ready too, or a rolling update would wait for them.
	if err := provider.OnAllReplicas(mgr); err != nil {
		return err
	}
	if err := mgr.AddHealthzCheck("healthz", healthz.Ping); err != nil {
		return err
	}
	if err := mgr.AddReadyzCheck("discovery", provider.ReadyCheck()); err != nil {
		return err
	}
	greetings := &controller.GreetingReconciler{
		Manager: mgr, Projects: provider,
		CleanUp: func(context.Context, string, string) error { return nil },
	}
	// The timeout limits for how long an unresponsive project occupies a worker.
	options := mccontroller.Options{MaxConcurrentReconciles: 4, ReconciliationTimeout: time.Minute}
	if err := greetings.SetupWithManager(provider, options); err != nil {
		return err
	}
	return mgr.Start(ctx)
}
