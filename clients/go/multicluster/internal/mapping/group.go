// Package mapping shares one REST mapper between the project control planes of one API server.
//
// A REST mapper keeps all discovery documents of a server, about 300 KiB. Milo serves the same definitions in every
// project of a server, so one mapper is valid for all of them. It uses the project that answers first, so that a project
// that does not answer delays no other.
package mapping

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

const (
	// anyMember is the placeholder for the server in requests of the mapper: members replaces it.
	anyMember    = "https://any-member.invalid"
	projects     = "/projects/"
	controlPlane = "/control-plane"
)

// ServerOf returns what identifies the API server behind the endpoint of a project control plane, and false for an
// endpoint that may have definitions of its own: one that is not of the form SERVER/projects/NAME/control-plane.
func ServerOf(endpoint string) (string, bool) {
	u, err := url.Parse(strings.TrimSuffix(endpoint, "/"))
	if err != nil || u.Host == "" || !strings.HasSuffix(u.Path, controlPlane) {
		return "", false
	}
	path := strings.TrimSuffix(u.Path, controlPlane)
	at := strings.LastIndex(path, projects)
	if at < 0 {
		return "", false
	}
	name := path[at+len(projects):]
	if name == "" || strings.Contains(name, "/") {
		return "", false
	}
	return u.Scheme + "://" + u.Host + path[:at], true
}

// Groups holds the shared mapper of each API server that has members.
type Groups struct {
	hedgeAfter time.Duration // set by tests; 0 means defaultHedgeAfter

	mu     sync.Mutex
	groups map[string]*group
}

type group struct {
	mapper  meta.RESTMapper
	members *members
}

// inTurn serializes the calls of a mapper of controller-runtime. A call that begins before another has read the discovery
// documents would read a part of them again, and remove the group if that part is not found.
type inTurn struct {
	mu sync.Mutex
	meta.RESTMapper
}

func (m *inTurn) RESTMapping(kind schema.GroupKind, versions ...string) (*meta.RESTMapping, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.RESTMapper.RESTMapping(kind, versions...)
}

func (m *inTurn) RESTMappings(kind schema.GroupKind, versions ...string) ([]*meta.RESTMapping, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.RESTMapper.RESTMappings(kind, versions...)
}

func (m *inTurn) KindFor(resource schema.GroupVersionResource) (schema.GroupVersionKind, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.RESTMapper.KindFor(resource)
}

func (m *inTurn) KindsFor(resource schema.GroupVersionResource) ([]schema.GroupVersionKind, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.RESTMapper.KindsFor(resource)
}

func (m *inTurn) ResourceFor(resource schema.GroupVersionResource) (schema.GroupVersionResource, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.RESTMapper.ResourceFor(resource)
}

func (m *inTurn) ResourcesFor(resource schema.GroupVersionResource) ([]schema.GroupVersionResource, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.RESTMapper.ResourcesFor(resource)
}

func (m *inTurn) ResourceSingularizer(resource string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.RESTMapper.ResourceSingularizer(resource)
}

// Own returns a REST mapper for one cluster. Its requests end with ctx.
func Own(ctx context.Context, config *rest.Config, transport http.RoundTripper) (meta.RESTMapper, error) {
	return apiutil.NewDynamicRESTMapper(config, &http.Client{Transport: alone{ctx, transport}})
}

// Join adds the cluster at the endpoint to the members that the server's mapper sends requests to, and returns that mapper. The
// cluster stays a member until leave is called; its requests end with ctx.
func (g *Groups) Join(ctx context.Context, server, endpoint string, transport http.RoundTripper) (mapper meta.RESTMapper, leave func(), err error) {
	base, err := url.Parse(strings.TrimSuffix(endpoint, "/"))
	if err != nil {
		return nil, nil, fmt.Errorf("endpoint %q: %w", endpoint, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	found, ok := g.groups[server]
	if !ok {
		asks := &members{hedgeAfter: cmp.Or(g.hedgeAfter, defaultHedgeAfter)}
		mapper, err := apiutil.NewDynamicRESTMapper(&rest.Config{Host: anyMember, QPS: -1}, &http.Client{Transport: asks})
		if err != nil {
			return nil, nil, fmt.Errorf("create the REST mapper of %s: %w", server, err)
		}
		found = &group{mapper: &inTurn{RESTMapper: mapper}, members: asks}
		if g.groups == nil {
			g.groups = map[string]*group{}
		}
		g.groups[server] = found
	}
	m := &member{lifetime: ctx, base: base, transport: transport}
	found.members.add(m)
	return found.mapper, sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if found.members.remove(m) == 0 && g.groups[server] == found {
			delete(g.groups, server)
		}
	}), nil
}
