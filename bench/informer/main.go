// Informer watches projects with client-go's dynamic informer, as a Go operator without the daemon does. It prints the
// number of projects once it has synced, and then the label value and the time of each update.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

var projects = schema.GroupVersionResource{
	Group: "resourcemanager.miloapis.com", Version: "v1alpha1", Resource: "projects",
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "the kubeconfig of the API server to watch")
	mark := flag.String("mark", "", "the label whose values are printed")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kubeconfig, *mark); err != nil {
		fmt.Fprintln(os.Stderr, "informer:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig, mark string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("--kubeconfig %q: %w", kubeconfig, err)
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("create a client: %w", err)
	}
	out := &teller{out: bufio.NewWriter(os.Stdout)}
	informer := dynamicinformer.NewDynamicSharedInformerFactory(client, 0).ForResource(projects).Informer()
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(_, now any) {
			out.tellf("%s %d\n", now.(*unstructured.Unstructured).GetLabels()[mark], time.Now().UnixNano())
		},
	})
	if err != nil {
		return fmt.Errorf("add the handler: %w", err)
	}
	go informer.RunWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
		return nil // terminated before the sync
	}
	out.tellf("synced %d\n", len(informer.GetStore().ListKeys()))
	<-ctx.Done()
	return nil
}

// teller writes and flushes one line at a time, so that the lines of several goroutines do not mix.
type teller struct {
	mutex sync.Mutex
	out   *bufio.Writer
}

func (t *teller) tellf(format string, what ...any) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	fmt.Fprintf(t.out, format, what...)
	_ = t.out.Flush() // fails only if the parent, which also terminates this process, has closed the pipe
}
