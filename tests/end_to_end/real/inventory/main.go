// An operator that finds its clusters in ClusterProfiles: it answers each ConfigMap named "question" in any of them, by
// the key "answered-by". The provider is in the directory that this file is built with.
package main

import (
	"context"
	"flag"
	"log"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	inventory "sigs.k8s.io/cluster-inventory-api/apis/v1alpha1"
	"sigs.k8s.io/cluster-inventory-api/pkg/access"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	mcbuilder "sigs.k8s.io/multicluster-runtime/pkg/builder"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	mcreconcile "sigs.k8s.io/multicluster-runtime/pkg/reconcile"
)

const answeredBy = "answered-by"

func main() {
	kubeconfig := flag.String("inventory", "", "kubeconfig of the API server with the ClusterProfiles")
	providers := access.SetupProviderFileFlag()
	flag.Parse()
	ctrl.SetLogger(klog.Background())
	if err := run(*kubeconfig, *providers); err != nil {
		log.Fatal(err)
	}
}

func run(kubeconfig, providers string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	accessConfig, err := access.NewFromFile(providers)
	if err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, inventory.AddToScheme} {
		if err := add(scheme); err != nil {
			return err
		}
	}
	provider, setUp, err := newProvider(accessConfig)
	if err != nil {
		return err
	}
	manager, err := mcmanager.New(config, provider, mcmanager.Options{
		Scheme:  scheme,
		Metrics: metricsserver.Options{BindAddress: "0"},
	})
	if err != nil {
		return err
	}
	if err := setUp(manager); err != nil {
		return err
	}
	err = mcbuilder.ControllerManagedBy(manager).Named("answers").For(&corev1.ConfigMap{}).Complete(
		mcreconcile.Func(func(ctx context.Context, request mcreconcile.Request) (ctrl.Result, error) {
			return ctrl.Result{}, answer(ctx, manager, request)
		}))
	if err != nil {
		return err
	}
	return manager.Start(ctrl.SetupSignalHandler())
}

func answer(ctx context.Context, manager mcmanager.Manager, request mcreconcile.Request) error {
	if request.Name != "question" {
		return nil
	}
	cluster, err := manager.GetCluster(ctx, request.ClusterName)
	if err != nil {
		return err
	}
	question := &corev1.ConfigMap{}
	if err := cluster.GetClient().Get(ctx, request.NamespacedName, question); err != nil {
		return client.IgnoreNotFound(err)
	}
	if question.Data[answeredBy] != "" {
		return nil
	}
	if question.Data == nil {
		question.Data = map[string]string{}
	}
	question.Data[answeredBy] = string(request.ClusterName)
	return cluster.GetClient().Update(ctx, question)
}
