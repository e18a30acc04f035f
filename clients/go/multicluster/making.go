package multicluster

import (
	"context"
	"fmt"
	"net/http"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/cluster"

	"go.miloapis.com/discovery/multicluster/internal/mapping"
	"go.miloapis.com/discovery/multicluster/internal/prompt"
)

// make creates the cluster.Cluster of an entry.
func (p *Provider) make(ctx context.Context, e *entry) (*instance, error) {
	info := e.info()
	config, err := p.configs.config(ctx, info, e.credential)
	if err != nil {
		return nil, err
	}
	i := &instance{ctx: ctx, leave: func() {}}
	first := func(o *cluster.Options) {
		o.Logger = p.options.Logger
		o.MapperProvider = func(config *rest.Config, httpClient *http.Client) (meta.RESTMapper, error) {
			mapper, leave, err := p.mapper(ctx, config, httpClient)
			if err == nil {
				i.leave = leave
			}
			return mapper, err
		}
	}
	// Last, since it wraps the operator's own cache, if there is one.
	last := func(o *cluster.Options) {
		if p.options.BlockingCaches {
			return
		}
		create := o.NewCache
		if create == nil {
			create = cache.New
		}
		o.NewCache = prompt.NewFunc(create, p.options.Logger.WithValues("cluster", e.name), func(made *prompt.Cache) { i.cache = made })
	}
	options := append([]cluster.Option{first}, p.options.ClusterOptions...)
	i.cluster, err = cluster.New(config, append(options, last)...)
	if err != nil {
		i.leave()
		return nil, fmt.Errorf("create the cluster: %w", err)
	}
	return i, nil
}

func (p *Provider) mapper(ctx context.Context, config *rest.Config, httpClient *http.Client) (meta.RESTMapper, func(), error) {
	// With Options.ConfigFor the host is not always the endpoint that the daemon has.
	if server, ok := mapping.ServerOf(config.Host); ok && !p.options.OwnMappers {
		return p.groups.Join(ctx, server, config.Host, httpClient.Transport)
	}
	mapper, err := mapping.Own(ctx, config, httpClient.Transport)
	return mapper, func() {}, err
}
