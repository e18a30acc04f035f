package multicluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"

	"go.miloapis.com/discovery"
)

// ErrClusterNotOwned is returned by Get for a cluster that another member of the shard group owns, or currently none.
// It is expected: that member works on the cluster, and this process may own it later. The error also matches
// multicluster.ErrClusterNotFound, for which multicluster-runtime drops a request instead of retrying it.
var ErrClusterNotOwned = errors.New("cluster is not owned by this member of the shard group")

// getTimeout is the timeout of Client.Get for a cluster that is not engaged.
const getTimeout = 2 * time.Second

// absence returns the error of Get for a cluster that is not engaged.
func (p *Provider) absence(ctx context.Context, name multicluster.ClusterName) error {
	unknown := fmt.Errorf("cluster %s is not engaged: %w", name, multicluster.ErrClusterNotFound)
	if p.shard.Load() == nil {
		return unknown
	}
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	report, err := p.options.Client.Get(ctx, string(name))
	if err != nil || report.Engagement.Reason != discovery.EngagementUnassigned {
		return unknown
	}
	return fmt.Errorf("%w: %s: %s (%w)", ErrClusterNotOwned, name, report.Engagement.Message, multicluster.ErrClusterNotFound)
}

// followShard requests the daemon's state in a shard group each time that a stream is connected, until ctx is done.
func (p *Provider) followShard(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.reconnected:
		}
		retry := retries
		for {
			info, err := p.options.Client.Info(ctx)
			if err == nil {
				p.shard.Store(info.Sharding)
				break
			}
			if ctx.Err() != nil || discovery.IsTerminal(err) {
				break
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(retry.Step()):
			}
		}
	}
}

// member returns the daemon's name in its shard group, or "" without a group.
func (p *Provider) member() string {
	if shard := p.shard.Load(); shard != nil {
		return shard.Member
	}
	return ""
}

// owned counts the clusters that Get returns.
func (p *Provider) owned() (count int) {
	for _, e := range p.snapshot() {
		if e.cluster() != nil {
			count++
		}
	}
	return count
}
