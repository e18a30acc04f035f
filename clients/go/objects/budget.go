package objects

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// roomPart is the part of TotalBytes that is freed besides, above it: each search for the largest scope reads all.
const roomPart = 64

// Limits are the limits of what is kept. A scope that exceeds one is dropped, with the state OverBudget, and listed again
// after Retry. What is zero has its default.
type Limits struct {
	// Objects is the maximum number of objects of one kind in one cluster; 100,000 by default.
	Objects int
	// Bytes is the maximum estimated memory of the objects of one kind in one cluster, and the maximum size of one page of
	// a list and of one event of a watch; 64 MiB by default.
	Bytes int64
	// TotalBytes is the maximum estimated memory of all objects; above it, the organization with the most (or the cluster
	// without one) loses its largest scopes; 1 GiB by default.
	TotalBytes int64
	// Retry is ten minutes by default.
	Retry time.Duration
}

func (l Limits) withDefaults() Limits {
	for _, each := range []struct {
		value *int64
		usual int64
	}{{&l.Bytes, 64 << 20}, {&l.TotalBytes, 1 << 30}} {
		if *each.value == 0 {
			*each.value = each.usual
		}
	}
	if l.Objects == 0 {
		l.Objects = 100_000
	}
	if l.Retry == 0 {
		l.Retry = 10 * time.Minute
	}
	return l
}

// overBudget is why a scope is dropped.
type overBudget string

func (o overBudget) Error() string { return string(o) }

// problem returns which limit of one scope is exceeded, or nil.
func (l Limits) problem(objects int, bytes int64) error {
	switch {
	case objects > l.Objects:
		return overBudget(fmt.Sprintf("the cluster has more than %d of these objects (Limits.Objects)", l.Objects))
	case bytes > l.Bytes:
		return overBudget(fmt.Sprintf("these objects of the cluster take more than %d bytes (Limits.Bytes)", l.Bytes))
	}
	return nil
}

// budget counts the memory of all scopes.
type budget struct {
	limits Limits

	mu    sync.Mutex
	total int64
	held  map[*scope]*share
}

type share struct {
	bytes  int64
	exceed context.CancelCauseFunc
}

func newBudget(limits Limits) *budget {
	return &budget{limits: limits, held: map[*scope]*share{}}
}

// join begins to count a scope. Its exceed is called once, if it has to be dropped.
func (b *budget) join(s *scope, exceed context.CancelCauseFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held[s] = &share{exceed: exceed}
}

// leave stops counting a scope.
func (b *budget) leave(s *scope) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget(s)
}

func (b *budget) forget(s *scope) {
	if of, ok := b.held[s]; ok {
		b.total -= of.bytes
		delete(b.held, s)
	}
}

// exceed drops a scope whose list exceeds a limit before it is complete.
func (b *budget) exceed(s *scope, why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(s, why)
}

func (b *budget) drop(s *scope, why error) {
	if of, ok := b.held[s]; ok {
		b.forget(s)
		of.exceed(why)
	}
}

// count notes the size of a scope, and drops a scope that exceeds a limit.
func (b *budget) count(s *scope, objects int, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	of, ok := b.held[s]
	if !ok {
		return // it is being dropped
	}
	b.total += bytes - of.bytes
	of.bytes = bytes
	if err := b.limits.problem(objects, bytes); err != nil {
		b.drop(s, err)
		return
	}
	if b.total <= b.limits.TotalBytes {
		return
	}
	b.makeRoom()
}

// makeRoom drops the largest scope of the largest tenant until all fit.
func (b *budget) makeRoom() {
	tenants := map[tenant]*tenantScopes{}
	for s, of := range b.held {
		its := tenantOf(s.cluster)
		if tenants[its] == nil {
			tenants[its] = &tenantScopes{}
		}
		tenants[its].bytes += of.bytes
		tenants[its].scopes = append(tenants[its].scopes, s)
	}
	for _, its := range tenants {
		slices.SortFunc(its.scopes, func(x, y *scope) int { return cmp.Compare(b.held[x].bytes, b.held[y].bytes) })
	}
	bySize := func(x, y *tenantScopes) int { return cmp.Compare(x.bytes, y.bytes) }
	limit := b.limits.TotalBytes
	for b.total > limit-limit/roomPart {
		its := slices.MaxFunc(slices.Collect(maps.Values(tenants)), bySize)
		last := len(its.scopes) - 1
		its.bytes -= b.held[its.scopes[last]].bytes
		b.drop(its.scopes[last], overBudget(fmt.Sprintf("it is the largest of its tenant, which has the most of all scopes, and these together take more than %d bytes (Limits.TotalBytes)", limit)))
		its.scopes = its.scopes[:last]
	}
}

// tenant is an organization, as the source of its clusters names it, or a cluster without one.
type tenant struct{ source, organization, cluster string }

func tenantOf(cluster Cluster) tenant {
	its := cluster.Current()
	if its.Organization != "" {
		return tenant{source: its.Source, organization: its.Organization}
	}
	return tenant{source: its.Source, cluster: its.Name}
}

// tenantScopes are the scopes of a tenant, the largest one last.
type tenantScopes struct {
	bytes  int64
	scopes []*scope
}
