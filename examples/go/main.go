// Subscriber prints the clusters of projects as they are engaged, updated and disengaged:
//
//	MILO_DISCOVERY_ADDRESS=unix:///run/milo-discovery/discovery.sock go run .
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.miloapis.com/discovery"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	heartbeat := 10 * time.Second
	if seconds, err := strconv.ParseFloat(os.Getenv("HEARTBEAT_S"), 64); err == nil {
		heartbeat = time.Duration(seconds * float64(time.Second))
	}
	client, err := discovery.Dial(discovery.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	subscriber := discovery.NewSubscriber()
	options := discovery.WatchOptions{
		HeartbeatInterval: heartbeat,
		Subscriber:        subscriber,
		Hooks: discovery.Hooks{
			Disconnected: func(err error) {
				if !errors.Is(err, discovery.ErrOwnershipLost) {
					log.Printf("stream broken, reconnecting: %v", err)
				}
			},
		},
	}
	err = client.Watch(ctx, options, func(events []discovery.Event) {
		show(events)
		release(ctx, client, subscriber, events)
	})
	if !errors.Is(err, context.Canceled) {
		log.Fatalf("subscription refused: %v", err)
	}
}

// release confirms that the work on draining clusters has ended; this program does no work on them. If a call fails,
// the daemon sends the cluster again on the next stream.
func release(ctx context.Context, client *discovery.Client, subscriber string, events []discovery.Event) {
	for _, event := range events {
		if event.Cluster.Draining == nil || event.Type == discovery.EventDisengaged {
			continue
		}
		go func() {
			if err := client.Release(ctx, event.Cluster, subscriber); err != nil {
				log.Printf("cluster %s was not released: %v", event.Cluster.Name, err)
			}
		}()
	}
}

func show(events []discovery.Event) {
	for _, event := range events {
		words := []string{fmt.Sprintf("%-10s", event.Type), event.Cluster.Name}
		switch event.Type {
		case discovery.EventEngaged, discovery.EventUpdated:
			words = append(words, event.Cluster.Endpoint)
		case discovery.EventDisengaged:
			words = append(words, string(event.Reason))
		default:
			continue // such as a new kubeconfig
		}
		fmt.Println(strings.Join(append(words, event.Message), "  "))
	}
}
