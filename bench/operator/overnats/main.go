// Overnats is a program for benchmarks: it reads two kinds of all clusters from NATS, as `operator follow` reads them from
// the clusters, and prints WORKING once it has read all of them. It is a program of its own, since one that reads NATS needs no
// library of Kubernetes' clients.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"go.miloapis.com/discovery/objects"
	"go.miloapis.com/discovery/objects/natssource"
)

func main() {
	url := flag.String("nats", "", "URL of a NATS server")
	clusters := flag.Int("clusters", 0, "number of clusters to read")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var options objects.Options
	for _, each := range []string{"v1/configmaps", "v1/secrets"} {
		options.Kinds = append(options.Kinds, objects.Kind{Resource: each, Fields: []string{"metadata.labels", "status"}, Secrets: true})
	}
	found, err := objects.NewFrom(natssource.New(natssource.Options{URL: *url}), options)
	if err != nil {
		fmt.Fprintln(os.Stderr, "overnats:", err)
		os.Exit(1)
	}
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			for range 4 { // each collection halves stacks that are mostly unused
				debug.FreeOSMemory()
			}
			fmt.Printf("STATUS {\"goroutines\": %d}\n", runtime.NumGoroutine())
		}
	}()
	go func() {
		for _, each := range options.Kinds {
			for found.View(each.Resource).Synced() < *clusters {
				time.Sleep(10 * time.Millisecond)
			}
		}
		fmt.Println("WORKING")
	}()
	_ = found.Run(ctx)
}
