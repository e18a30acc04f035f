// Command engagements prints the clusters that the provider engages and disengages, for the tests of subscribers in
// tests/end_to_end/examples.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	mc "sigs.k8s.io/multicluster-runtime/pkg/multicluster"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/multicluster"
)

const pollInterval = 20 * time.Millisecond

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	heartbeat, _ := strconv.Atoi(os.Getenv("HEARTBEAT_S"))
	logger := funcr.NewJSON(func(line string) {
		if strings.Contains(line, "stream from milo-discoveryd broke") {
			show("stream broken, reconnecting:", line)
		}
	}, funcr.Options{})
	ctrllog.SetLogger(logger)
	provider, err := multicluster.New(multicluster.Options{
		ProjectRestConfig: &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}},
		HeartbeatInterval: time.Duration(heartbeat) * time.Second,
		Logger:            logger,
		Registerer:        prometheus.NewRegistry(),
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := provider.Start(ctx, &printer{provider: provider}); err != nil {
		log.Fatalf("refused: %v", err)
	}
}

// printer is an Aware that prints engagements, updates of labels, and disengagements.
type printer struct {
	provider *multicluster.Provider
	// ended has, for each name, a channel that is closed after the end of its engagement was printed.
	ended sync.Map
}

func (p *printer) Engage(ctx context.Context, name mc.ClusterName, _ cluster.Cluster) error {
	ended := make(chan struct{})
	if former, ok := p.ended.Swap(name, ended); ok {
		<-former.(chan struct{})
	}
	info, _ := p.provider.Info(name)
	show("ENGAGED", info.Name, info.Endpoint)
	go func() {
		defer close(ended)
		p.follow(ctx, info)
	}()
	return nil
}

func (p *printer) follow(ctx context.Context, before discovery.Cluster) {
	name := mc.ClusterName(before.Name)
	for {
		select {
		case <-ctx.Done():
			var cause *multicluster.Disengaged
			if errors.As(context.Cause(ctx), &cause) {
				show("DISENGAGED", before.Name, string(cause.Reason), cause.Message)
			}
			return
		case <-time.After(pollInterval):
			if info, ok := p.provider.Info(name); ok && info.UID == before.UID && !reflect.DeepEqual(info.Labels, before.Labels) {
				show("UPDATED", info.Name, info.Endpoint)
				before = info
			}
		}
	}
}

func show(words ...string) { fmt.Println(strings.Join(words, "  ")) }
