package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/objects"
)

// follow reads kinds of all clusters, with package objects or with client-go's shared informers, and prints WORKING once
// it has read all of them.
func follow(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("follow", flag.ExitOnError)
	address := flags.String("address", "", "address of milo-discoveryd")
	ca := flags.String("ca", "", "file with the CA certificate of the projects' control planes")
	count := flags.Int("kinds", 2, "number of kinds to follow in each cluster")
	clusters := flags.Int("clusters", 0, "number of clusters to read")
	informers := flags.Bool("shared-informers", false, "use client-go's shared informers")
	_ = flags.Parse(arguments) // ExitOnError
	content, err := os.ReadFile(*ca)
	if err != nil {
		return err
	}
	config := func(cluster *discovery.EngagedCluster) (*rest.Config, error) {
		return &rest.Config{
			Host: cluster.Current().Endpoint, TLSClientConfig: rest.TLSClientConfig{CAData: content}, BearerToken: "bench", QPS: -1,
		}, nil
	}
	go answer(func() any {
		for range 4 { // each collection halves stacks that are mostly unused
			debug.FreeOSMemory()
		}
		return map[string]int{goroutines: runtime.NumGoroutine()}
	})
	client, err := discovery.Dial(discovery.Options{Address: *address})
	if err != nil {
		return err
	}
	if *informers {
		return runInformers(ctx, client, config, kinds[:*count], *clusters)
	}
	options := objects.Options{RESTConfig: config}
	for _, each := range kinds[:*count] {
		version := each.GroupVersion().String()
		options.Kinds = append(options.Kinds, objects.Kind{Resource: version + "/" + each.resource, Fields: []string{"metadata.labels", "status"}, Secrets: true})
	}
	found, err := objects.New(client, options)
	if err != nil {
		return err
	}
	go func() {
		for _, each := range options.Kinds {
			for found.View(each.Resource).Synced() < *clusters {
				time.Sleep(10 * time.Millisecond)
			}
		}
		fmt.Println("WORKING")
	}()
	return found.Run(ctx)
}

func runInformers(
	ctx context.Context, client *discovery.Client, config func(*discovery.EngagedCluster) (*rest.Config, error), kinds []kind, clusters int,
) error {
	done := &progress{missing: clusters, seen: map[string]struct{}{}}
	return client.RunFleet(ctx, discovery.FleetOptions{}, func(ctx context.Context, cluster *discovery.EngagedCluster) error {
		given, err := config(cluster)
		if err != nil {
			return err
		}
		kubernetes, err := dynamic.NewForConfig(given)
		if err != nil {
			return err
		}
		factory := dynamicinformer.NewDynamicSharedInformerFactory(kubernetes, 0)
		for _, each := range kinds {
			informer := factory.ForResource(each.GroupVersion().WithResource(each.resource)).Informer()
			if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{}); err != nil {
				return err
			}
		}
		factory.Start(ctx.Done())
		factory.WaitForCacheSync(ctx.Done())
		if ctx.Err() == nil {
			done.note(cluster.Name())
		}
		<-ctx.Done()
		factory.Shutdown()
		return nil
	})
}
