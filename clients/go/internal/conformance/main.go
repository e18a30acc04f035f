// Command conformance is the subscriber with which the conformance kit tests this client.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"go.miloapis.com/discovery"
)

type line struct {
	Event      string `json:"event"`
	Cluster    string `json:"cluster,omitempty"`
	UID        string `json:"uid,omitempty"`
	Endpoint   string `json:"endpoint,omitempty"`
	Suspended  bool   `json:"suspended,omitempty"`
	Draining   string `json:"draining,omitempty"`
	Reason     string `json:"reason,omitempty"`
	Code       string `json:"code,omitempty"`
	Kubeconfig string `json:"kubeconfig,omitempty"`
	Token      string `json:"token,omitempty"`
	Server     string `json:"server,omitempty"`
	As         string `json:"as,omitempty"`
}

// codeNames maps status codes to their canonical names.
var codeNames = map[codes.Code]string{
	codes.InvalidArgument:    "INVALID_ARGUMENT",
	codes.NotFound:           "NOT_FOUND",
	codes.PermissionDenied:   "PERMISSION_DENIED",
	codes.FailedPrecondition: "FAILED_PRECONDITION",
	codes.Unimplemented:      "UNIMPLEMENTED",
	codes.Unavailable:        "UNAVAILABLE",
	codes.Unauthenticated:    "UNAUTHENTICATED",
}

var output sync.Mutex

func printLine(printed line) {
	output.Lock()
	defer output.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(printed); err != nil {
		log.Fatal(err)
	}
}

func printError(event, cluster string, err error) {
	var failed *discovery.StatusError
	code := err.Error()
	if errors.As(err, &failed) {
		code = codeNames[failed.Code]
	}
	printLine(line{Event: event, Cluster: cluster, Code: code})
}

func main() {
	client, err := discovery.Dial(discovery.Options{})
	if err != nil {
		log.Fatal(err)
	}
	seconds, err := strconv.ParseFloat(os.Getenv("CONFORMANCE_HEARTBEAT_S"), 64)
	if err != nil {
		log.Fatal(err)
	}
	options := discovery.WatchOptions{
		Filter:             discovery.Filter{LabelSelector: os.Getenv("CONFORMANCE_LABEL_SELECTOR")},
		HeartbeatInterval:  time.Duration(seconds * float64(time.Second)),
		IncludeKubeconfigs: os.Getenv("CONFORMANCE_KUBECONFIGS") != "",
		Subscriber:         os.Getenv("CONFORMANCE_SUBSCRIBER"),
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	if os.Getenv("CONFORMANCE_FLEET") != "" {
		runFleet(ctx, client, options, stop)
		return
	}
	var clusters sync.Map
	go func() {
		err := client.Watch(ctx, options, func(events []discovery.Event) {
			for _, event := range events {
				clusters.Store(event.Cluster.Name, event.Cluster)
				printEvent(event)
			}
		})
		if ctx.Err() == nil {
			printError("FATAL", "", err)
		}
	}()
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		words := append(strings.Fields(commands.Text()), "", "")
		switch name := words[1]; words[0] {
		case "release":
			cluster, ok := clusters.Load(name)
			if !ok {
				log.Fatalf("cluster %s is not engaged", name)
			}
			if err := client.Release(ctx, cluster.(discovery.Cluster), options.Subscriber); err != nil {
				printError("FAILED", name, err)
			}
		case "kubeconfig":
			issued, err := client.Issue(ctx, name, discovery.IssueOptions{})
			if err != nil {
				printError("FAILED", name, err)
			} else {
				printLine(line{Event: "ISSUED", Cluster: name, Kubeconfig: string(issued.Content)})
			}
		case "stop":
			stop()
			if err := client.EndSubscription(context.Background(), options.Subscriber); err != nil {
				log.Fatal(err)
			}
			return
		}
	}
}

func printEvent(event discovery.Event) {
	printed := line{
		Event:     string(event.Type),
		Cluster:   event.Cluster.Name,
		UID:       event.Cluster.UID,
		Endpoint:  event.Cluster.Endpoint,
		Suspended: event.Cluster.Suspended,
		Reason:    string(event.Reason),
	}
	if event.Cluster.Draining != nil {
		printed.Draining = string(event.Cluster.Draining.Reason)
	}
	if event.Kubeconfig != nil {
		printed.Kubeconfig = string(event.Kubeconfig.Content)
	}
	if event.Type != discovery.EventRefreshed {
		printLine(printed)
	}
}
