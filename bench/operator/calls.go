package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"
)

var projectKind = schema.GroupVersionKind{Group: "resourcemanager.miloapis.com", Version: "v1alpha1", Kind: "Project"}

// calls is a provider that makes the same API calls as Milo's provider, in the same order, with the settings that
// operators use: a manager that watches Projects with a cache of unstructured objects, one worker, and for each ready
// Project a cluster that is started, synced and engaged before the next one. It is written from a description of Milo's
// provider, and stands in for it.
type calls struct {
	discovery manager.Manager
	projects  *rest.Config
	options   []cluster.Option
	aware     multicluster.Aware
	process   context.Context

	mu       sync.Mutex
	clusters map[multicluster.ClusterName]cluster.Cluster
	cancels  map[multicluster.ClusterName]context.CancelFunc
}

func newCalls(discovery, projects *rest.Config, sharedMapper bool) (*calls, error) {
	discovery.QPS, discovery.Burst = usualQPS, 2*usualQPS
	mgr, err := ctrl.NewManager(discovery, ctrl.Options{
		Metrics: metricsserver.Options{BindAddress: "0"},
		Client:  client.Options{Cache: &client.CacheOptions{Unstructured: true}},
	})
	if err != nil {
		return nil, err
	}
	c := &calls{
		discovery: mgr, projects: projects,
		clusters: map[multicluster.ClusterName]cluster.Cluster{}, cancels: map[multicluster.ClusterName]context.CancelFunc{},
	}
	if sharedMapper {
		c.options = append(c.options, oneMapper())
	}
	project := &unstructured.Unstructured{}
	project.SetGroupVersionKind(projectKind)
	return c, ctrl.NewControllerManagedBy(mgr).Named("projects").For(project).Complete(c)
}

// oneMapper makes all clusters share the REST mapper of the first one, which is correct if they serve the same kinds.
func oneMapper() cluster.Option {
	var mapper meta.RESTMapper
	return func(o *cluster.Options) {
		o.MapperProvider = func(config *rest.Config, client *http.Client) (_ meta.RESTMapper, err error) {
			if mapper == nil {
				mapper, err = apiutil.NewDynamicRESTMapper(config, client)
			}
			return mapper, err
		}
	}
}

func (c *calls) start(mgr mcmanager.Manager) error {
	c.aware = mgr
	return mgr.GetLocalManager().Add(manager.RunnableFunc(func(ctx context.Context) error {
		c.process = ctx
		return c.discovery.Start(ctx)
	}))
}

func (c *calls) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	name := multicluster.ClusterName(request.Name)
	c.mu.Lock()
	defer c.mu.Unlock()
	project := &unstructured.Unstructured{}
	project.SetGroupVersionKind(projectKind)
	if err := c.discovery.GetClient().Get(ctx, request.NamespacedName, project); err != nil {
		c.remove(name)
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if ready, err := isReady(project); err != nil || !ready {
		c.remove(name)
		return ctrl.Result{}, err
	}
	if _, ok := c.clusters[name]; ok {
		return ctrl.Result{}, nil
	}
	config, err := c.configFor(request.Name)
	if err != nil {
		return ctrl.Result{}, err
	}
	cl, err := cluster.New(config, c.options...)
	if err != nil {
		return ctrl.Result{}, err
	}
	clusterCtx, cancel := context.WithCancel(c.process)
	go func() { _ = cl.Start(clusterCtx) }()
	if !cl.GetCache().WaitForCacheSync(ctx) {
		cancel()
		return ctrl.Result{}, fmt.Errorf("the cache of %s did not sync", name)
	}
	c.clusters[name], c.cancels[name] = cl, cancel
	return ctrl.Result{}, c.aware.Engage(clusterCtx, name, cl)
}

func (c *calls) configFor(name string) (*rest.Config, error) {
	host, err := url.Parse(c.projects.Host)
	if err != nil {
		return nil, err
	}
	host.Path = "/apis/resourcemanager.miloapis.com/v1alpha1/projects/" + name + "/control-plane"
	config := rest.CopyConfig(c.projects)
	config.Host = host.String()
	return config, nil
}

func (c *calls) remove(name multicluster.ClusterName) {
	if cancel, ok := c.cancels[name]; ok {
		cancel()
		delete(c.clusters, name)
		delete(c.cancels, name)
	}
}

func isReady(project *unstructured.Unstructured) (bool, error) {
	found, _, err := unstructured.NestedSlice(project.Object, "status", "conditions")
	if err != nil {
		return false, err
	}
	conditions := make([]metav1.Condition, 0, len(found))
	for _, each := range found {
		var condition metav1.Condition
		fields, ok := each.(map[string]any)
		if !ok {
			continue
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(fields, &condition); err != nil {
			return false, err
		}
		conditions = append(conditions, condition)
	}
	return meta.IsStatusConditionTrue(conditions, "Ready"), nil
}

func (c *calls) Get(_ context.Context, name multicluster.ClusterName) (cluster.Cluster, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if found, ok := c.clusters[name]; ok {
		return found, nil
	}
	return nil, fmt.Errorf("cluster %s: %w", name, multicluster.ErrClusterNotFound)
}

func (c *calls) IndexField(context.Context, client.Object, string, client.IndexerFunc) error {
	return nil
}
