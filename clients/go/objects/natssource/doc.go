// Package natssource reads the objects of all clusters from the JetStream stream that `milo-objects publish` writes: the
// same store as with the clusters themselves, without a request to any of them.
//
//	source := natssource.New(natssource.Options{URL: "nats://nats:4222"})
//	found, err := objects.NewFrom(source, objects.Options{
//		Kinds:   []objects.Kind{{Resource: "v1/namespaces", Fields: []string{"metadata.labels", "status.phase"}}},
//		Indexes: map[string]objects.Index{"uid": func(o *objects.Object) []string { return []string{o.UID} }},
//	})
//	...
//	go found.Run(ctx)
//
// A Kind keeps those of its Fields that are published, and its LabelSelector needs metadata.labels to be published.
//
// While NATS cannot be reached, or no publisher has been heard for 30 s, what is known stays, and
// [objects.View.StaleSince] says up to when it is complete.
package natssource
