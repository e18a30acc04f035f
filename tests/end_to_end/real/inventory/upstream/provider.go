// multicluster-runtime's own provider for the Cluster Inventory API.
package main

import (
	"sigs.k8s.io/cluster-inventory-api/pkg/access"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"
	upstream "sigs.k8s.io/multicluster-runtime/providers/cluster-inventory-api"
	"sigs.k8s.io/multicluster-runtime/providers/cluster-inventory-api/kubeconfigstrategy"
)

func newProvider(config *access.Config) (multicluster.Provider, func(mcmanager.Manager) error, error) {
	strategy := kubeconfigstrategy.Option{
		CredentialsProvider: &kubeconfigstrategy.CredentialsProviderOption{Provider: config},
	}
	provider, err := upstream.New(upstream.Options{KubeconfigStrategyOption: strategy})
	if err != nil {
		return nil, nil, err
	}
	return provider, provider.SetupWithManager, nil
}
