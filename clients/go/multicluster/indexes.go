package multicluster

import (
	"context"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// index is a field index that every cluster gets.
type index struct {
	object  client.Object
	field   string
	extract client.IndexerFunc
}

func (i index) key() string {
	kind := i.object.GetObjectKind().GroupVersionKind()
	if kind == (schema.GroupVersionKind{}) {
		return fmt.Sprintf("%T %s", i.object, i.field)
	}
	return fmt.Sprintf("%T %s %s", i.object, kind, i.field)
}

// IndexField adds a field index to all clusters, including those that are engaged later.
//
// A cluster to which the index cannot be added in time is restarted with it, and Get does not return it until then.
// That is not an error, since one unresponsive cluster must not stop the operator.
func (p *Provider) IndexField(ctx context.Context, obj client.Object, field string, extract client.IndexerFunc) error {
	object, ok := obj.DeepCopyObject().(client.Object) // kept for later clusters, while the caller may reuse its object
	if !ok {
		return fmt.Errorf("%T is not a client.Object", obj)
	}
	added := index{object: object, field: field, extract: extract}
	p.mu.Lock()
	for _, each := range p.indexes {
		if each.key() == added.key() {
			p.mu.Unlock()
			return fmt.Errorf("field %q of %T is already indexed", field, obj)
		}
	}
	p.indexes = append(p.indexes, added)
	p.mu.Unlock()

	ctx, cancel := context.WithTimeoutCause(ctx, p.options.SyncTimeout, fmt.Errorf("a field index was not added within Options.SyncTimeout (%v)", p.options.SyncTimeout))
	defer cancel()
	limit := make(chan struct{}, p.options.MaxConcurrent)
	var indexing sync.WaitGroup
	for _, e := range p.snapshot() {
		i := e.current()
		if i == nil {
			continue
		}
		indexing.Go(func() {
			p.indexLive(ctx, i, limit)
		})
	}
	indexing.Wait()
	return nil
}

// indexLive adds the missing indexes to a running instance. If that fails, it stops the instance, which is restarted
// with the indexes.
func (p *Provider) indexLive(ctx context.Context, i *instance, limit chan struct{}) {
	select {
	case limit <- struct{}{}:
	case <-ctx.Done():
		i.cancel(context.Cause(ctx))
		return
	}
	ended := make(chan error, 1)
	go func() {
		defer func() { <-limit }()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		// An informer of a cache that has stopped never syncs.
		defer context.AfterFunc(i.ctx, cancel)()
		ended <- p.index(ctx, i)
	}()
	select {
	case err := <-ended:
		if err != nil {
			i.cancel(err)
		}
	case <-ctx.Done():
		// The cluster's API discovery has no context, and may take longer.
		i.cancel(context.Cause(ctx))
	}
}

// index adds the missing indexes to an instance.
func (p *Provider) index(ctx context.Context, i *instance) error {
	i.indexing.Lock()
	defer i.indexing.Unlock()
	for {
		p.mu.RLock()
		missing := p.indexes[i.indexed:]
		p.mu.RUnlock()
		if len(missing) == 0 {
			return nil
		}
		for _, each := range missing {
			if err := i.cluster.GetFieldIndexer().IndexField(ctx, each.object, each.field, each.extract); err != nil {
				return fmt.Errorf("index field %q of %T: %w", each.field, each.object, err)
			}
			i.indexed++
		}
	}
}
