// Package objects follows objects of some kinds in all engaged clusters: projected, in one store with indexes.
//
//	found, err := objects.New(client, objects.Options{
//		Kinds:   []objects.Kind{{Resource: "v1/namespaces", Fields: []string{"metadata.labels", "status.phase"}}},
//		Indexes: map[string]objects.Index{"uid": func(o *objects.Object) []string { return []string{o.UID} }},
//	})
//	...
//	go found.Run(ctx)
//	hits := found.Find("uid", uid)                    // objects with their clusters
//	err = found.View("v1/namespaces").Err()           // why one that was not found may exist
//
// # Scopes
//
// The unit is the scope: one kind in one engagement of one cluster. It has a State, a first list and an end; nothing is
// ever that of all clusters. A cluster that hangs, refuses a kind (403) or does not serve it (404) is one of
// View.Missing, and the others are not affected.
//
// Only the fields that Kind.Fields names are kept, and a change of the others reports nothing, such as the renewal of a
// Lease. What identifies an object is always kept.
//
// # Ends
//
// Options.OnChange is told once, with all objects of the scope, that a cluster was disengaged. An outage of a cluster
// makes a scope Stale and removes nothing; neither does the end of Run, nor a daemon that is away.
package objects
