// Peer runs Milo's own provider inside multicluster-runtime, as an operator in Go embeds it. It prints each cluster that
// is engaged or disengaged on a line with the time, to be compared with the events of the daemon.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"go.miloapis.com/milo/pkg/multicluster-runtime/milo"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	mcmanager "sigs.k8s.io/multicluster-runtime/pkg/manager"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"
)

const (
	project             = "project"
	projectControlPlane = "project-control-plane"
)

type options struct {
	kubeconfig    string
	mode          string
	labelSelector string
	verbose       bool
}

func main() {
	// A separate flag set, because controller-runtime adds a --kubeconfig flag to the common one.
	flags := flag.NewFlagSet("peer", flag.ExitOnError)
	var opts options
	flags.StringVar(&opts.kubeconfig, "kubeconfig", "", "the kubeconfig of the API server to watch")
	flags.StringVar(&opts.mode, "mode", project, "what to watch: "+project+" or "+projectControlPlane)
	flags.StringVar(&opts.labelSelector, "label-selector", "", "only objects that match this selector")
	flags.BoolVar(&opts.verbose, "verbose", false, "write the provider's log to standard error")
	_ = flags.Parse(os.Args[1:]) // ExitOnError

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, opts options) error {
	if opts.mode != project && opts.mode != projectControlPlane {
		return fmt.Errorf("--mode %q: use %s or %s", opts.mode, project, projectControlPlane)
	}
	selector, err := metav1.ParseToLabelSelector(opts.labelSelector)
	if err != nil {
		return fmt.Errorf("--label-selector %q: %w", opts.labelSelector, err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", opts.kubeconfig)
	if err != nil {
		return fmt.Errorf("--kubeconfig %q: %w", opts.kubeconfig, err)
	}
	ctrl.SetLogger(logger(opts.verbose))
	go countWhenAsked()

	// The settings that operators use. Without the cache, each project is read by a request; client-go's default rate is
	// 5 requests per second.
	config.QPS, config.Burst = 50, 100
	local, err := ctrl.NewManager(config, ctrl.Options{
		Metrics: server.Options{BindAddress: "0"},
		Client:  client.Options{Cache: &client.CacheOptions{Unstructured: true}},
	})
	if err != nil {
		return fmt.Errorf("create the manager: %w", err)
	}
	provider, err := milo.New(local, milo.Options{
		InternalServiceDiscovery: opts.mode == projectControlPlane,
		LabelSelector:            selector,
	})
	if err != nil {
		return fmt.Errorf("create the provider: %w", err)
	}
	manager, err := mcmanager.WithMultiCluster(local, provider)
	if err != nil {
		return fmt.Errorf("create the multi-cluster manager: %w", err)
	}
	if err := manager.Add(teller{process: ctx}); err != nil {
		return fmt.Errorf("add the printer of events: %w", err)
	}
	return manager.Start(ctx)
}

// teller prints each cluster that the manager engages, and its disengagement.
type teller struct {
	process context.Context
}

func (t teller) Start(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (t teller) Engage(ctx context.Context, name multicluster.ClusterName, cl cluster.Cluster) error {
	tell("ENGAGED", name, cl.GetConfig().Host)
	go func() {
		<-ctx.Done()
		if t.process.Err() == nil { // the termination of this process is not a disengagement
			tell("DISENGAGED", name, "")
		}
	}()
	return nil
}

// tell writes a whole line at once, so that lines of several goroutines are not interleaved.
func tell(what string, name multicluster.ClusterName, endpoint string) {
	line := fmt.Sprintf("%s %s %s", time.Now().UTC().Format(time.RFC3339Nano), what, name)
	if endpoint != "" {
		line += " " + endpoint
	}
	fmt.Println(line)
}

// countWhenAsked prints the number of goroutines at each SIGUSR1.
func countWhenAsked() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	for range asked {
		fmt.Printf("%s GOROUTINES %d\n", time.Now().UTC().Format(time.RFC3339Nano), runtime.NumGoroutine())
	}
}

func logger(verbose bool) logr.Logger {
	if !verbose {
		return logr.Discard()
	}
	return funcr.New(func(prefix, args string) { fmt.Fprintln(os.Stderr, prefix, args) }, funcr.Options{})
}
