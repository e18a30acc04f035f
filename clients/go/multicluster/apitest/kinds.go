package apitest

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

var (
	verbs       = []string{"create", "delete", "get", "list", "patch", "update", "watch"}
	clusterWide = map[string]bool{"Namespace": true, "Node": true, "ClusterRole": true, "ClusterRoleBinding": true, "PersistentVolume": true}
)

// catalog contains the kinds that a project serves, by resource, and their discovery documents, by path.
type catalog struct {
	kinds     map[schema.GroupVersionResource]schema.GroupVersionKind
	documents map[string][]byte
}

// builtin returns the catalog of all kinds of client-go's scheme.
var builtin = sync.OnceValue(func() *catalog {
	found := map[schema.GroupVersionResource]schema.GroupVersionKind{}
	known := scheme.Scheme.AllKnownTypes()
	for kind := range known {
		_, listed := known[kind.GroupVersion().WithKind(kind.Kind+"List")]
		if kind.Version == "__internal" || !listed {
			continue
		}
		resource, _ := meta.UnsafeGuessKindToResource(kind)
		found[resource] = kind
	}
	return &catalog{found, documents(found)}
})

// changed returns a copy of the catalog with changed kinds.
func (c *catalog) changed(change func(map[schema.GroupVersionResource]schema.GroupVersionKind)) *catalog {
	kinds := maps.Clone(c.kinds)
	change(kinds)
	return &catalog{kinds, documents(kinds)}
}

// documents returns the aggregated discovery documents of /api and /apis, and the list of resources of each group
// version.
func documents(kinds map[schema.GroupVersionResource]schema.GroupVersionKind) map[string][]byte {
	found := map[string][]byte{}
	groups := map[string]map[string][]apidiscovery.APIResourceDiscovery{}
	for resource, kind := range kinds {
		scope := apidiscovery.ScopeNamespace
		if clusterWide[kind.Kind] {
			scope = apidiscovery.ScopeCluster
		}
		of := &metav1.GroupVersionKind{Group: kind.Group, Version: kind.Version, Kind: kind.Kind}
		versions, ok := groups[kind.Group]
		if !ok {
			versions = map[string][]apidiscovery.APIResourceDiscovery{}
			groups[kind.Group] = versions
		}
		versions[kind.Version] = append(versions[kind.Version], apidiscovery.APIResourceDiscovery{
			Resource: resource.Resource, ResponseKind: of, Scope: scope, SingularResource: strings.ToLower(kind.Kind), Verbs: verbs,
			Subresources: []apidiscovery.APISubresourceDiscovery{
				{Subresource: "status", ResponseKind: of, Verbs: []string{"get", "patch", "update"}},
			},
		})
	}
	core, others := []apidiscovery.APIGroupDiscovery{}, []apidiscovery.APIGroupDiscovery{}
	for name, versions := range groups {
		for version, resources := range versions {
			path, list := resourceList(schema.GroupVersion{Group: name, Version: version}, resources)
			found[path] = marshaled(list)
		}
		group := apidiscovery.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: name}}
		for version, resources := range versions {
			slices.SortFunc(resources, func(a, b apidiscovery.APIResourceDiscovery) int { return cmp.Compare(a.Resource, b.Resource) })
			group.Versions = append(group.Versions, apidiscovery.APIVersionDiscovery{
				Version: version, Resources: resources, Freshness: apidiscovery.DiscoveryFreshnessCurrent,
			})
		}
		// v1 before v1beta1 before v1alpha1: the first version is the preferred one.
		slices.SortFunc(group.Versions, func(a, b apidiscovery.APIVersionDiscovery) int {
			return cmp.Or(cmp.Compare(len(a.Version), len(b.Version)), cmp.Compare(b.Version, a.Version))
		})
		if name == "" {
			core = append(core, group)
		} else {
			others = append(others, group)
		}
	}
	slices.SortFunc(others, func(a, b apidiscovery.APIGroupDiscovery) int { return cmp.Compare(a.Name, b.Name) })
	found["/api"], found["/apis"] = document(core), document(others)
	return found
}

func document(groups []apidiscovery.APIGroupDiscovery) []byte {
	return marshaled(apidiscovery.APIGroupDiscoveryList{
		TypeMeta: metav1.TypeMeta{Kind: "APIGroupDiscoveryList", APIVersion: "apidiscovery.k8s.io/v2"},
		Items:    groups,
	})
}

// resourceList returns the path and the APIResourceList of a group version.
func resourceList(of schema.GroupVersion, resources []apidiscovery.APIResourceDiscovery) (string, metav1.APIResourceList) {
	path := "/apis/" + of.String()
	if of.Group == "" {
		path = "/api/" + of.Version
	}
	list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: of.String()}
	for _, each := range resources {
		list.APIResources = append(list.APIResources, metav1.APIResource{
			Name: each.Resource, SingularName: each.SingularResource, Kind: each.ResponseKind.Kind,
			Namespaced: each.Scope == apidiscovery.ScopeNamespace, Verbs: each.Verbs,
		})
	}
	return path, list
}

func marshaled(document any) []byte {
	content, err := json.Marshal(document)
	if err != nil {
		panic(err) // cannot happen: all types can be marshaled
	}
	return content
}
