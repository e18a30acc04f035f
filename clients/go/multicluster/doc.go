// Package multicluster provides a multicluster-runtime provider for Milo project control planes, which it discovers
// through milo-discoveryd.
//
//	provider, err := multicluster.New(multicluster.Options{
//		ClusterOptions:    []cluster.Option{func(o *cluster.Options) { o.Scheme = scheme }},
//		ProjectRestConfig: projectConfig,
//	})
//	mgr, err := mcmanager.New(config, provider, manager.Options{Scheme: scheme})
//	err = provider.OnAllReplicas(mgr) // only if replicas that do not lead need Get, for example for webhooks
//	err = mgr.Start(ctx)
//
// # Lifecycle of a cluster
//
//   - Engaged: the provider creates a cluster.Cluster, adds the field indexes, starts it, and engages it with the manager.
//     Each cluster has its own goroutine; a failure is retried with backoff, and affects no other cluster.
//   - Updated: only the result of Info changes. After a change of the endpoint, a new cluster.Cluster is created.
//   - Draining, because its disengagement is planned: Get no longer returns it, its context is canceled, and it is released
//     to the daemon when its cache has stopped and its reconciles have returned. Wrap reconcilers in Reconciler for the
//     latter. Credentials are valid until the daemon disengages it.
//   - Disengaged, for any reason: Get no longer returns it, and its context is canceled with a *Disengaged as cause. From
//     then on, its clients send no requests and return that error, because another project may have the name. The next
//     cluster of the name is engaged with the manager after the context of the last one is canceled and its caches have
//     stopped. Work that a component starts on the cancellation, as in a context.AfterFunc, may still run then: a
//     component that counts engagements there can count a name as engaged twice at once.
//   - Daemon unreachable, or its view stale: work on the clusters continues. But a daemon of a shard group has to confirm
//     every few seconds that it owns the clusters. Otherwise they are disengaged as OWNERSHIP_LOST when its ownership
//     expires, since another daemon may engage them.
//   - Credentials renewed: requests use the new credential. Caches and open watches are kept.
//
// # Unresponsive clusters
//
// multicluster-runtime engages clusters sequentially, under a lock, and waits for each informer. The clusters of this
// provider do not block it: with the context of Engage, GetInformer of a cluster's cache returns a placeholder, whose
// HasSynced is false until the actual informer has synced, and WaitForCacheSync returns true at once. This is correct
// for controllers, but not for other components. These need the provider's coordinator:
//
//	mcmanager.New(config, provider, options, mcmanager.WithCoordinator(provider.Coordinator()))
//
// With it, other components get an ordinary context, and their Engage may wait for informers without delaying other
// clusters.
//
// A reconciler that reads a kind without a synced informer in the cluster waits for at most 5 s from the first read of
// the kind in that cluster. Later reads fail at once until the informer has synced. Options.BlockingCaches restores the
// default behavior of controller-runtime, without these limits.
//
// # Sharding
//
// Start rejects multicluster-runtime's sharded coordinator, in which the disengagement of one cluster also ends others,
// permanently. The daemon's own sharding assigns each replica its clusters; Get returns ErrClusterNotOwned for a
// cluster that another member owns. An operator that keeps another provider can replace the sharded coordinator with a
// Coordinator.
//
// # Requests
//
// Clients do not follow redirects, but return an error: a redirect could send the credential to any server. Kubeconfigs
// are requested for the incarnation of the engagement, and their credential is sent only to their server.
package multicluster
