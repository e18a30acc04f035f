package mapping

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"golang.org/x/sync/singleflight"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// Mapper is the REST mapper of one cluster. It reads the cluster's discovery documents when it is first used, and again
// when they lack a kind.
type Mapper struct {
	documents *Documents
	from      server
	legacy    func() (meta.RESTMapper, error)
	current   atomic.Pointer[reading]
	attempts  singleflight.Group
}

// reading is the result of reading the discovery documents of a cluster. Results are compared by address.
type reading struct {
	mapper meta.RESTMapper
	// core and groups are nil for a server without aggregated discovery, whose mapper reads documents itself.
	core, groups *document
}

// Mapper returns the mapper of a cluster. Its requests are canceled with ctx.
func (d *Documents) Mapper(ctx context.Context, config *rest.Config, client *http.Client) (*Mapper, error) {
	transport := client.Transport
	if transport == nil {
		transport = http.DefaultTransport
	}
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", config.Host, err)
	}
	return &Mapper{
		documents: d,
		from:      server{ctx, base, transport},
		legacy: func() (meta.RESTMapper, error) {
			return apiutil.NewDynamicRESTMapper(config, &http.Client{Transport: bounded{ctx, transport}})
		},
	}, nil
}

// after returns the current reading. If the caller has already seen it, after reads the documents again, except from a
// server without aggregated discovery.
func (m *Mapper) after(seen *reading) (*reading, error) {
	if now := m.current.Load(); now != seen || seen != nil && seen.core == nil {
		return now, nil
	}
	read, err, _ := m.attempts.Do("", func() (any, error) {
		if now := m.current.Load(); now != seen {
			return now, nil
		}
		next, err := m.read(seen)
		if err == nil {
			m.current.Store(next)
		}
		return next, err
	})
	return read.(*reading), err
}

func (m *Mapper) read(before *reading) (*reading, error) {
	if before == nil {
		before = &reading{}
	}
	core, err := m.documents.read(m.from, "/api", before.core)
	if errors.Is(err, errNotAggregated) {
		mapper, err := m.legacy()
		return &reading{mapper: mapper}, err
	}
	if err != nil {
		return nil, err
	}
	groups, err := m.documents.read(m.from, "/apis", before.groups)
	if err != nil {
		return nil, err
	}
	both := meta.FirstHitRESTMapper{MultiRESTMapper: meta.MultiRESTMapper{core.mapper, groups.mapper}}
	return &reading{mapper: both, core: core, groups: groups}, nil
}

func find[T any](m *Mapper, in func(meta.RESTMapper) (T, error)) (found T, err error) {
	known, err := m.after(nil)
	if err != nil {
		return found, err
	}
	if found, err = in(known.mapper); !meta.IsNoMatchError(err) {
		return found, err
	}
	newer, failed := m.after(known)
	if failed != nil {
		return found, failed
	}
	return in(newer.mapper)
}

func (m *Mapper) RESTMapping(kind schema.GroupKind, versions ...string) (*meta.RESTMapping, error) {
	return find(m, func(in meta.RESTMapper) (*meta.RESTMapping, error) { return in.RESTMapping(kind, versions...) })
}

func (m *Mapper) RESTMappings(kind schema.GroupKind, versions ...string) ([]*meta.RESTMapping, error) {
	return find(m, func(in meta.RESTMapper) ([]*meta.RESTMapping, error) { return in.RESTMappings(kind, versions...) })
}

func (m *Mapper) KindFor(resource schema.GroupVersionResource) (schema.GroupVersionKind, error) {
	return find(m, func(in meta.RESTMapper) (schema.GroupVersionKind, error) { return in.KindFor(resource) })
}

func (m *Mapper) KindsFor(resource schema.GroupVersionResource) ([]schema.GroupVersionKind, error) {
	return find(m, func(in meta.RESTMapper) ([]schema.GroupVersionKind, error) { return in.KindsFor(resource) })
}

func (m *Mapper) ResourceFor(resource schema.GroupVersionResource) (schema.GroupVersionResource, error) {
	return find(m, func(in meta.RESTMapper) (schema.GroupVersionResource, error) { return in.ResourceFor(resource) })
}

func (m *Mapper) ResourcesFor(resource schema.GroupVersionResource) ([]schema.GroupVersionResource, error) {
	return find(m, func(in meta.RESTMapper) ([]schema.GroupVersionResource, error) { return in.ResourcesFor(resource) })
}

func (m *Mapper) ResourceSingularizer(resource string) (string, error) {
	return find(m, func(in meta.RESTMapper) (string, error) { return in.ResourceSingularizer(resource) })
}

// bounded cancels requests with the cluster's context, and after a timeout. controller-runtime's mapper passes no
// context.
type bounded struct {
	lifetime  context.Context
	transport http.RoundTripper
}

func (b bounded) RoundTrip(request *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(b.lifetime, requestTimeout)
	context.AfterFunc(ctx, cancel) // not deferred, because the body is read after the return
	return b.transport.RoundTrip(request.WithContext(ctx))
}
