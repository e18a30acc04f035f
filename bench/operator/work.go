package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	mcbuilder "sigs.k8s.io/multicluster-runtime/pkg/builder"
	mccontroller "sigs.k8s.io/multicluster-runtime/pkg/controller"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"
	mcreconcile "sigs.k8s.io/multicluster-runtime/pkg/reconcile"

	discoverymc "go.miloapis.com/discovery/multicluster"
)

// usualQPS is the limit that operators usually set for clients of project control planes.
const usualQPS = 50

type settings struct {
	address, discovery, url, ca string
	informers, clusters         int
	kubeconfigs, verbose        bool
	sharedMapper                bool
	registry                    *prometheus.Registry
}

// work engages clusters, and prints WORKING once it has reconciled an object of each watched kind in each of them; with
// --informers=0, once it has engaged them.
func work(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("work", flag.ExitOnError)
	s := settings{registry: prometheus.NewRegistry()}
	flags.StringVar(&s.address, "address", "", "address of milo-discoveryd; by default, make the calls of Milo's provider")
	flags.StringVar(&s.discovery, "discovery-kubeconfig", "", "API server with the projects; only without --address")
	flags.StringVar(&s.url, "url", "", "URL of the API server of the projects' control planes")
	flags.StringVar(&s.ca, "ca", "", "file with the CA certificate of --url")
	flags.IntVar(&s.informers, "informers", 0, "number of kinds to watch in each cluster")
	flags.IntVar(&s.clusters, "clusters", 0, "number of clusters to work in")
	flags.BoolVar(&s.kubeconfigs, "kubeconfigs", false, "use credentials from milo-discoveryd")
	flags.BoolVar(&s.sharedMapper, "shared-mapper", false, "share one REST mapper among clusters; only without --address")
	flags.BoolVar(&s.verbose, "verbose", false, "log to standard error")
	_ = flags.Parse(arguments) // ExitOnError
	ca, err := os.ReadFile(s.ca)
	if err != nil {
		return err
	}
	ctrl.SetLogger(logger(s.verbose))
	projects := &rest.Config{
		Host: s.url, TLSClientConfig: rest.TLSClientConfig{CAData: ca}, BearerToken: "bench", QPS: usualQPS, Burst: 2 * usualQPS,
	}
	provider, start, err := s.provider(projects)
	if err != nil {
		return err
	}
	// No request is sent to the manager's local cluster.
	mgr, err := mcmanager.New(projects, provider, manager.Options{Metrics: metricsserver.Options{BindAddress: "0"}})
	if err != nil {
		return err
	}
	done := &progress{registry: s.registry, missing: s.clusters * max(s.informers, 1), seen: map[string]struct{}{}}
	if err := mgr.Add(done); err != nil {
		return err
	}
	for _, each := range kinds[:s.informers] {
		if err := done.watch(mgr, each); err != nil {
			return err
		}
	}
	if s.informers == 0 {
		done.engaged = true
	}
	if start != nil {
		if err := start(mgr); err != nil {
			return err
		}
	}
	go answer(done.status)
	return mgr.Start(ctx)
}

// provider returns the provider, and a function that starts what the provider needs with the manager, or nil.
func (s settings) provider(projects *rest.Config) (multicluster.Provider, func(mcmanager.Manager) error, error) {
	if s.address == "" {
		config, err := clientcmd.BuildConfigFromFlags("", s.discovery)
		if err != nil {
			return nil, nil, err
		}
		calls, err := newCalls(config, projects, s.sharedMapper)
		return calls, calls.start, err
	}
	options := discoverymc.Options{Address: s.address, Registerer: s.registry}
	if s.kubeconfigs {
		options.Kubeconfigs = true
	} else {
		options.ProjectRestConfig = projects
	}
	provider, err := discoverymc.New(options)
	return provider, nil, err
}

// progress counts the kinds, in each cluster, of which no object was reconciled yet.
type progress struct {
	engaged  bool // wait only until clusters are engaged, not for reconciles
	registry *prometheus.Registry
	calls    atomic.Int64
	live     atomic.Int64

	mu      sync.Mutex
	seen    map[string]struct{}
	missing int
}

func (p *progress) Start(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (p *progress) Engage(ctx context.Context, name multicluster.ClusterName, _ cluster.Cluster) error {
	p.calls.Add(1)
	p.live.Add(1)
	context.AfterFunc(ctx, func() { p.live.Add(-1) })
	if p.engaged {
		p.note(name.String())
	}
	return nil
}

func (p *progress) note(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.seen[what]; ok {
		return
	}
	p.seen[what] = struct{}{}
	if p.missing--; p.missing == 0 {
		fmt.Println("WORKING")
	}
}

func (p *progress) watch(mgr mcmanager.Manager, each kind) error {
	made, err := scheme.Scheme.New(each.GroupVersionKind)
	if err != nil {
		return err
	}
	object, ok := made.(client.Object)
	if !ok {
		return errors.New("the type of the kind is not a client.Object")
	}
	skip := true
	return mcbuilder.ControllerManagedBy(mgr).Named(each.resource).For(object).
		WithOptions(mccontroller.Options{SkipNameValidation: &skip}).
		Complete(mcreconcile.Func(func(_ context.Context, request mcreconcile.Request) (reconcile.Result, error) {
			p.note(request.ClusterName.String() + " " + each.resource)
			return reconcile.Result{}, nil
		}))
}

// status returns free memory to the operating system first, so that the memory of processes can be compared.
func (p *progress) status() any {
	left := leftGoroutines() // first, since its text becomes garbage
	for range 4 {            // each collection halves stacks that are mostly unused
		debug.FreeOSMemory()
	}
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	return map[string]int{
		"stack_bytes": int(memory.StackInuse), "heap_bytes": int(memory.HeapInuse),
		goroutines: runtime.NumGoroutine(), "mcr_goroutines": left, "engage_calls": int(p.calls.Load()), "live": int(p.live.Load()),
		"snapshots": p.snapshots(),
	}
}

// leftGoroutines counts the goroutines that multicluster-runtime leaves for each source.
func leftGoroutines() int {
	var text strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&text, 2)
	left := 0
	for stack := range strings.SplitSeq(text.String(), "\n\n") {
		if strings.Contains(stack, "created by sigs.k8s.io/multicluster-runtime/pkg/controller.(*mcController[...].func") ||
			strings.Contains(stack, "startWithinContext") {
			left++
		}
	}
	return left
}

// snapshots returns how many streams of the provider began with a snapshot.
func (p *progress) snapshots() int {
	families, err := p.registry.Gather()
	if err != nil {
		panic(err) // cannot fail: this process registered the metrics
	}
	for _, family := range families {
		if family.GetName() == "milo_discovery_client_snapshots_total" {
			return int(family.GetMetric()[0].GetCounter().GetValue())
		}
	}
	return 0
}

func logger(verbose bool) logr.Logger {
	if !verbose {
		return logr.Discard()
	}
	return funcr.New(func(prefix, args string) { fmt.Fprintln(os.Stderr, prefix, args) }, funcr.Options{LogTimestamp: true})
}
