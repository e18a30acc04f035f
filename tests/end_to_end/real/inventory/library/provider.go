// A small provider on the library of KEP-4322, which the providers of all consumers use to build client configurations.
package main

import (
	"context"

	"k8s.io/apimachinery/pkg/api/meta"
	inventory "sigs.k8s.io/cluster-inventory-api/apis/v1alpha1"
	"sigs.k8s.io/cluster-inventory-api/pkg/access"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/multicluster-runtime/pkg/clusters"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"
)

type provider struct {
	clusters.Clusters[cluster.Cluster]
	config  *access.Config
	client  client.Client
	manager mcmanager.Manager
}

func newProvider(config *access.Config) (multicluster.Provider, func(mcmanager.Manager) error, error) {
	found := &provider{Clusters: clusters.New[cluster.Cluster](), config: config}
	return found, found.setUp, nil
}

func (p *provider) setUp(manager mcmanager.Manager) error {
	local := manager.GetLocalManager()
	p.client, p.manager = local.GetClient(), manager
	return ctrl.NewControllerManagedBy(local).For(&inventory.ClusterProfile{}).Complete(reconcile.Func(p.reconcile))
}

func (p *provider) reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	name := multicluster.ClusterName(request.String())
	profile := &inventory.ClusterProfile{}
	if err := p.client.Get(ctx, request.NamespacedName, profile); err != nil {
		p.Remove(name)
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	healthy := meta.IsStatusConditionTrue(profile.Status.Conditions, inventory.ClusterConditionControlPlaneHealthy)
	if _, err := p.Get(ctx, name); err == nil || !healthy {
		return reconcile.Result{}, nil
	}
	config, err := p.config.BuildConfigFromCP(profile)
	if err != nil {
		return reconcile.Result{}, err
	}
	found, err := cluster.New(config)
	if err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{}, p.Add(context.Background(), name, found, p.manager)
}
