package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"go.miloapis.com/discovery/multicluster/apitest"
)

// kind is a kind that the operator watches, with the name of its resource.
type kind struct {
	schema.GroupVersionKind
	resource string
}

var kinds = []kind{
	{schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}, "configmaps"},
	{schema.GroupVersionKind{Version: "v1", Kind: "Secret"}, "secrets"},
	{schema.GroupVersionKind{Version: "v1", Kind: "ServiceAccount"}, "serviceaccounts"},
	{schema.GroupVersionKind{Version: "v1", Kind: "Service"}, "services"},
	{schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, "deployments"},
	{schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "StatefulSet"}, "statefulsets"},
	{schema.GroupVersionKind{Group: "batch", Version: "v1", Kind: "Job"}, "jobs"},
	{schema.GroupVersionKind{Group: "networking.k8s.io", Version: "v1", Kind: "Ingress"}, "ingresses"},
	{schema.GroupVersionKind{Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy"}, "networkpolicies"},
	{schema.GroupVersionKind{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "Role"}, "roles"},
	{schema.GroupVersionKind{Group: "rbac.authorization.k8s.io", Version: "v1", Kind: "RoleBinding"}, "rolebindings"},
	{schema.GroupVersionKind{Version: "v1", Kind: "ResourceQuota"}, "resourcequotas"},
}

// serve runs an API server whose projects have objects of each kind. Project names are those of bench/projects.py.
func serve(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	projects := flags.Int("projects", 0, "number of projects with objects")
	objects := flags.Int("objects", 1, "number of objects of each kind in a project")
	hanging := flags.Int("hanging", 0, "number of projects, from the first on, that never respond")
	stable := flags.Bool("stable-kinds", false, "do not serve kinds of alpha and beta versions")
	latency := flags.Duration("latency", 0, "minimum duration of each request")
	ca := flags.String("ca", "", "file to write the CA certificate to")
	_ = flags.Parse(arguments) // ExitOnError
	server := apitest.Start(*latency)
	defer server.Close()
	if *stable {
		server.ServeOnly(func(kind schema.GroupVersionKind) bool {
			return !strings.Contains(kind.Version, "alpha") && !strings.Contains(kind.Version, "beta")
		})
	}
	names := make([]string, *projects)
	for i := range names {
		names[i] = fmt.Sprintf("project-%06d", i)
		project := server.Project(names[i])
		project.SetHanging(i < *hanging)
		for _, each := range kinds {
			for number := range *objects {
				object := &unstructured.Unstructured{Object: map[string]any{}}
				object.SetGroupVersionKind(each.GroupVersionKind)
				object.SetNamespace(metav1.NamespaceDefault)
				object.SetName(fmt.Sprintf("work-%d", number))
				project.Apply(each.GroupVersion().WithResource(each.resource), object)
			}
		}
	}
	if err := os.WriteFile(*ca, server.CA(), 0o600); err != nil {
		return err
	}
	fmt.Println("URL", server.URL())
	go answer(func() any {
		open, opened := 0, 0
		for _, name := range names {
			open += server.Project(name).Watches()
			for _, each := range kinds {
				opened += server.Project(name).Count("watch " + each.resource)
			}
		}
		return map[string]int{
			goroutines: runtime.NumGoroutine(), "kinds": server.Kinds(), "requests": server.Requests(), "connections": server.Connections(), "watches": open, "watches_opened": opened,
		}
	})
	<-ctx.Done()
	return nil
}
