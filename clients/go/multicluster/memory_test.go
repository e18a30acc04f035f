package multicluster_test

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
	"go.miloapis.com/discovery/multicluster"
)

const operators = "local" // the project that serves as the operator's own cluster

var configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}

// memorySite is a site with a fake daemon and a fake API server in the test's process.
type memorySite struct{ environment *environment }

func (s memorySite) client() *discovery.Client { return s.environment.daemon.Client() }

func (s memorySite) identify(o *multicluster.Options) { o.ProjectRestConfig = s.environment.config() }

func (s memorySite) local() *rest.Config {
	config := s.environment.config()
	config.Host = s.endpoint(operators)
	return config
}

func (s memorySite) engage(names ...string) {
	s.environment.t.Helper()
	s.environment.daemon.Batch(func(c *discoverytest.Changes) {
		for _, name := range names {
			c.Engage(discovery.Cluster{Name: name, Endpoint: s.endpoint(name)})
		}
	})
}

func (s memorySite) label(name, key, value string) {
	s.environment.t.Helper()
	s.environment.daemon.Update(name, func(c *discovery.Cluster) { c.Labels = map[string]string{key: value} })
}

func (s memorySite) move(name, project string) {
	s.environment.t.Helper()
	s.environment.daemon.Update(name, func(c *discovery.Cluster) { c.Endpoint = s.endpoint(project) })
}

func (s memorySite) drain(name string) {
	s.environment.t.Helper()
	s.environment.daemon.Drain(name, discovery.ReasonLabelsChanged)
}

func (s memorySite) remove(name string) {
	s.environment.t.Helper()
	s.environment.daemon.Disengage(name, discovery.ReasonDeleted)
}

func (s memorySite) endpoint(project string) string { return s.environment.api.Endpoint(project) }

func (s memorySite) put(project, name string, data map[string]string) {
	object := &unstructured.Unstructured{Object: map[string]any{}}
	object.SetGroupVersionKind(schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"})
	object.SetNamespace(metav1.NamespaceDefault)
	object.SetName(name)
	content := map[string]any{}
	for key, value := range data {
		content[key] = value
	}
	object.Object["data"] = content
	s.environment.api.Project(project).Apply(configMaps, object)
}

func (s memorySite) data(project, name string) map[string]string {
	found := s.environment.api.Project(project).Get(configMaps, types.NamespacedName{Namespace: metav1.NamespaceDefault, Name: name})
	if found == nil {
		return nil
	}
	data, _, _ := unstructured.NestedStringMap(found.Object, "data")
	return data
}
