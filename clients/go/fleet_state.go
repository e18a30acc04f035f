package discovery

import (
	"sync"
	"time"
)

// FleetState says how current a [Fleet] is.
type FleetState struct {
	// Connected is set while a stream of the daemon is open.
	Connected bool
	// Synced is set once a complete view of the engaged clusters has arrived. Until then, and after
	// [ReasonOwnershipLost], any cluster can be missing.
	Synced bool
	// PendingSources are the sources of which the daemon has no complete list yet: clusters of theirs can be missing.
	PendingSources []string
	// StaleSince is the time up to which the view is complete, if it does not follow Milo now: there is no stream, or no
	// snapshot has arrived on it yet, or the source is stale.
	StaleSince time.Time
	// Problem is why there is no stream.
	Problem string
	// Source is the daemon's view of Milo, as last received. With several sources, it is that of the least current one.
	Source SourceStatus
}

// fleetState is a FleetState that the hooks of a watch keep.
type fleetState struct {
	mu      sync.Mutex
	now     FleetState // its StaleSince is that of the stream
	heard   time.Time  // when the last message of the stream arrived
	pending []string   // of the snapshot whose Synced follows
}

func (d *fleetState) get() FleetState {
	d.mu.Lock()
	defer d.mu.Unlock()
	found := d.now
	if found.Synced && found.Source.State == SourceStale {
		contact := found.Source.LastContact
		if contact.IsZero() {
			contact = found.Source.Since
		}
		if found.StaleSince.IsZero() || contact.Before(found.StaleSince) {
			found.StaleSince = contact
		}
	}
	return found
}

func (d *fleetState) change(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// observe returns hooks that keep the state, and then call the given ones.
func (d *fleetState) observe(given Hooks) Hooks {
	hooks := given
	hooks.Connected = func(resumed bool) {
		d.change(func() {
			d.now.Connected, d.now.Problem = true, ""
			if resumed {
				d.now.StaleSince = time.Time{}
			}
		})
		notify(given.Connected, resumed)
	}
	hooks.Disconnected = func(err error) {
		d.lost(err)
		notify(given.Disconnected, err)
	}
	hooks.Received = func() {
		d.change(func() { d.heard = time.Now() })
		if given.Received != nil {
			given.Received()
		}
	}
	hooks.Pending = func(sources []string) {
		d.change(func() { d.pending = sources })
		notify(given.Pending, sources)
	}
	hooks.Synced = func(clusters int) {
		d.change(func() { d.now.Synced, d.now.PendingSources, d.now.StaleSince = true, d.pending, time.Time{} })
		notify(given.Synced, clusters)
	}
	hooks.Source = func(source SourceStatus) {
		d.change(func() { d.now.Source = source })
		notify(given.Source, source)
	}
	return hooks
}

func (d *fleetState) lost(err error) {
	d.change(func() {
		d.now.Connected, d.now.Problem = false, err.Error()
		if d.now.Synced && d.now.StaleSince.IsZero() {
			d.now.StaleSince = d.heard
		}
	})
}

func (d *fleetState) disowned() {
	d.change(func() { d.now.Synced, d.now.StaleSince = false, time.Time{} })
}
