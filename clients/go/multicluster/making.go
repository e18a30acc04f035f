package multicluster

import (
	"context"
	"fmt"
	"net/http"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"

	"go.miloapis.com/discovery/multicluster/internal/prompt"
)

// make creates the cluster.Cluster of an entry.
func (p *Provider) make(ctx context.Context, e *entry) (*instance, error) {
	info := e.info()
	config, err := p.configs.config(ctx, info, e.credential)
	if err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.Wrap(func(base http.RoundTripper) http.RoundTripper { return &engagedTransport{base: base, owned: e.owned} })
	i := &instance{ctx: ctx}
	first := func(o *cluster.Options) {
		o.Logger = p.options.Logger
		o.MapperProvider = func(config *rest.Config, httpClient *http.Client) (meta.RESTMapper, error) {
			return p.documents.Mapper(ctx, config, httpClient)
		}
	}
	// Applied last, since it wraps the cache and informers that the operator's ClusterOptions set.
	last := func(o *cluster.Options) {
		if p.options.BlockingCaches {
			return
		}
		create := o.NewCache
		if create == nil {
			create = cache.New
		}
		o.NewCache = prompt.NewFunc(
			create, func(made *prompt.Cache) { i.cache = made }, func(u prompt.Unsynced) { p.reportUnsynced(e.name, u) },
		)
	}
	options := append([]cluster.Option{first}, p.options.ClusterOptions...)
	i.cluster, err = cluster.New(config, append(options, last)...)
	if err != nil {
		return nil, fmt.Errorf("create the cluster: %w", err)
	}
	return i, nil
}

// reportUnsynced logs only the first failure of a kind with a reason: a kind that no cluster serves would flood the
// log.
func (p *Provider) reportUnsynced(name multicluster.ClusterName, u prompt.Unsynced) {
	if _, known := p.reported.LoadOrStore(u.Kind+" "+string(u.Reason), nil); known {
		return
	}
	p.options.Logger.Info(
		"informer failed and is retried; see the metric milo_discovery_client_unsynced_informers and the debug handler "+
			"for later failures of the kind",
		"kind", u.Kind, "reason", u.Reason, "cluster", name, "message", u.Message,
	)
}
