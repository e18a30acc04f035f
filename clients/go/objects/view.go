package objects

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.miloapis.com/discovery"
)

const (
	notBegun  = "not read yet"
	mostNamed = 10 // scopes in the text of an error
)

// View is what is known of one kind: whether an object that was not found may exist.
type View struct {
	Resource string
	// Fleet says whether all engaged clusters are known.
	Fleet discovery.FleetState
	// Known is the number of engaged clusters that are known.
	Known int
	// Missing are the scopes of these that were not read completely yet, by the names of their clusters, and why: an object
	// that is not found may exist there.
	Missing []Scope
	// Outdated are the scopes that were read and cannot be followed at present, and why.
	Outdated []Scope
}

// Synced returns the number of clusters that were read completely.
func (v View) Synced() int { return v.Known - len(v.Missing) }

// StaleSince returns the time up to which all that is known is complete. It is zero if everything is followed.
func (v View) StaleSince() time.Time {
	since := v.Fleet.StaleSince
	for _, each := range v.Outdated {
		if since.IsZero() || each.Since.Before(since) {
			since = each.Since
		}
	}
	return since
}

func (v *View) count(found Scope) {
	v.Known++
	switch {
	case !found.Filled:
		v.Missing = append(v.Missing, found)
	case found.State != Synced:
		v.Outdated = append(v.Outdated, found)
	}
}

// Err returns what is not known: the engaged clusters, or the kind in some of them. It returns nil if all of it was read:
// what is not found did not exist, as of StaleSince.
func (v View) Err() error {
	var problems []error
	switch {
	case !v.Fleet.Synced && v.Fleet.Problem != "":
		problems = append(problems, fmt.Errorf("the engaged clusters are not known: %s", v.Fleet.Problem))
	case !v.Fleet.Synced:
		problems = append(problems, errors.New("the engaged clusters are not known yet"))
	case len(v.Fleet.PendingSources) > 0:
		problems = append(problems, fmt.Errorf("the clusters of the sources %s are not known yet", strings.Join(v.Fleet.PendingSources, ", ")))
	}
	if len(v.Missing) > 0 {
		var names []string
		for _, each := range v.Missing[:min(len(v.Missing), mostNamed)] {
			names = append(names, fmt.Sprintf("%s (%s: %s)", each.Cluster.Name(), each.State, each.Problem))
		}
		if more := len(v.Missing) - len(names); more > 0 {
			names = append(names, fmt.Sprintf("and %d more", more))
		}
		problems = append(problems, fmt.Errorf("%s of %d of %d clusters were not read: %s",
			v.Resource, len(v.Missing), v.Known, strings.Join(slices.Clip(names), ", ")))
	}
	return errors.Join(problems...)
}
