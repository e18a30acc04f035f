package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"
	"slices"
	"strings"
	"sync"

	"go.miloapis.com/discovery"
)

// running is a running handler, and the channel for the command that ends it.
type running struct {
	cluster *discovery.EngagedCluster
	command chan string
}

// handlers contains the running handlers of each cluster, oldest first.
type handlers struct {
	mu     sync.Mutex
	byName map[string][]*running
}

func (h *handlers) oldest(name string) *running {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.byName[name]) == 0 {
		log.Fatalf("cluster %s has no handler", name)
	}
	return h.byName[name][0]
}

func (h *handlers) work(ctx context.Context, cluster *discovery.EngagedCluster) error {
	name, uid := cluster.Name(), cluster.Current().UID
	handler := &running{cluster: cluster, command: make(chan string, 1)}
	h.mu.Lock()
	h.byName[name] = append(h.byName[name], handler)
	h.mu.Unlock()
	printLine(line{Event: "BEGIN", Cluster: name, UID: uid})
	command := ""
	select {
	case command = <-handler.command:
	case <-ctx.Done():
		printLine(line{Event: "SIGNALED", Cluster: name, UID: uid})
		if os.Getenv("CONFORMANCE_LINGER") != "" {
			command = <-handler.command
		}
	}
	h.mu.Lock()
	h.byName[name] = slices.DeleteFunc(h.byName[name], func(other *running) bool { return other == handler })
	h.mu.Unlock()
	printLine(line{Event: "END", Cluster: name, UID: uid})
	if command == "fail" {
		return errors.New("scripted")
	}
	return nil
}

func runFleet(ctx context.Context, client *discovery.Client, options discovery.WatchOptions, stop func()) {
	h := &handlers{byName: map[string][]*running{}}
	go func() {
		commands := bufio.NewScanner(os.Stdin)
		for commands.Scan() {
			switch verb, name, _ := strings.Cut(commands.Text(), " "); verb {
			case "stop":
				stop()
			case "credential":
				printCredential(h.oldest(name).cluster)
			default:
				h.oldest(name).command <- verb
			}
		}
	}()
	err := client.RunFleet(ctx, discovery.FleetOptions{WatchOptions: options}, h.work)
	if !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}

// printCredential prints the server, the token and the impersonated user of the cluster's kubeconfig.
func printCredential(cluster *discovery.EngagedCluster) {
	printed := line{Event: "CREDENTIAL", Cluster: cluster.Name()}
	kubeconfig, err := cluster.Kubeconfig(context.Background())
	if err != nil {
		printed.Code = err.Error()
		printLine(printed)
		return
	}
	var file struct {
		Clusters []struct{ Cluster struct{ Server string } }
		Users    []struct{ User struct{ Token, As string } }
	}
	if err := json.Unmarshal(kubeconfig.Content, &file); err != nil {
		log.Fatal(err)
	}
	printed.Server = file.Clusters[0].Cluster.Server
	printed.Token, printed.As = file.Users[0].User.Token, file.Users[0].User.As
	printLine(printed)
}
