// Prints project clusters as they are engaged, updated and disengaged:
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
	options := discovery.WatchOptions{
		HeartbeatInterval: heartbeat,
		Hooks: discovery.Hooks{
			Disconnected: func(err error) { log.Printf("the stream broke, every cluster stays as it is: %v", err) },
		},
	}
	if err := client.Watch(ctx, options, show); !errors.Is(err, context.Canceled) {
		log.Fatalf("refused: %v", err)
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
			continue // what is renewed without a change to the cluster
		}
		fmt.Println(strings.Join(append(words, event.Message), "  "))
	}
}
