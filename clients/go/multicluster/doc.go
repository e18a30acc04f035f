// Package multicluster is a provider for multicluster-runtime that follows Milo project control planes through
// milo-discoveryd.
//
//	provider, err := multicluster.New(multicluster.Options{
//		ClusterOptions:    []cluster.Option{func(o *cluster.Options) { o.Scheme = scheme }},
//		ProjectRestConfig: projectConfig,
//	})
//	mgr, err := mcmanager.New(config, provider, manager.Options{Scheme: scheme})
//	err = provider.OnAllReplicas(mgr) // only if followers need Get, as webhooks do
//	err = mgr.Start(ctx)
//
// # What happens to a cluster
//
//   - Engaged: a cluster.Cluster is made, gets the field indexes, is started, and is handed to the manager. This happens
//     in a goroutine of its own; a failure is retried with backoff, and affects no other cluster.
//   - Updated: nothing, except that Info returns the new state. A new endpoint makes a new cluster.
//   - Draining, because its disengagement is planned: Get stops returning it, its context is canceled, and it is released to
//     the daemon when its cache has stopped and its reconciles have returned. Wrap reconcilers in Reconciler for the latter.
//     Credentials work until the daemon disengages it.
//   - Disengaged, for whatever reason: Get stops returning it, and its context is canceled with a *Disengaged as cause.
//     Its clients send nothing from then on, and return that error: the name may be that of another project. The manager
//     is given the next engagement of a name when the context of the last one has ended and its caches have stopped. What a
//     component does because its context ended may still run then, as in a context.AfterFunc; wait for it where that matters.
//   - Daemon unreachable, or its view stale: nothing. Work on the clusters continues. Only a daemon of a shard group has
//     to confirm every few seconds that it owns the clusters: otherwise they are disengaged as OWNERSHIP_LOST when its
//     ownership expires, since another daemon may engage them.
//   - Credentials renewed: requests use the new credential. Caches and open watches are kept.
//
// # Under multicluster-runtime's lock
//
// multicluster-runtime engages one cluster after another, and waits for each informer. The clusters of this provider do
// not make it wait: under the context of Engage, GetInformer of a cluster's cache returns a placeholder, whose HasSynced is
// false until the informer behind it has synced, and WaitForCacheSync is true at once. This is for controllers. For other
// components it is wrong, and they get it as well, unless the manager has the provider's coordinator:
//
//	mcmanager.New(config, provider, options, mcmanager.WithCoordinator(provider.Coordinator()))
//
// With it, their Engage has an ordinary context, and may wait for the informers of its cluster. No other cluster waits for it.
//
// A reconciler that reads a kind for which the cluster has no
// synced informer yet does wait, for at most 5 s from the first read of the kind in that cluster: later reads fail at once,
// until it has synced. Options.BlockingCaches restores the usual behavior, without these limits.
//
// # Sharding
//
// multicluster-runtime's sharded coordinator is refused by Start: in it the disengagement of one cluster ends others, which
// nothing starts again. The daemon's own sharding gives each replica its own clusters; Get of one that another member owns
// returns an ErrClusterNotOwned. An operator that keeps another provider takes a Coordinator instead of the sharded one.
//
// # Requests
//
// A cluster that answers with a redirect gets an error: a client that followed it would send the credential to a server
// that the cluster names. Kubeconfigs are requested for the incarnation of the engagement, and their credential is sent to
// no server but their own.
package multicluster
