// Prints project clusters as they are engaged, updated and disengaged:
//
//	MILO_DISCOVERY_ADDRESS=unix:///run/milo-discovery/discovery.sock go run .
package main

//go:generate ./generate.sh

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "example.com/milo-discovery-subscriber/discoveryv1"
)

const (
	firstPause   = 200 * time.Millisecond
	longestPause = 10 * time.Second
)

var heartbeat = 10 * time.Second

func main() {
	log.SetFlags(0)
	if seconds, err := strconv.ParseFloat(os.Getenv("HEARTBEAT_S"), 64); err == nil {
		heartbeat = time.Duration(seconds * float64(time.Second))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	address := cmp.Or(os.Getenv("MILO_DISCOVERY_ADDRESS"), "unix:///run/milo-discovery/discovery.sock")
	// The daemon is next door: be there soon after it is, and go through no proxy.
	reconnect := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}
	conn, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}),
		grpc.WithNoProxy())
	if err != nil {
		log.Fatalf("MILO_DISCOVERY_ADDRESS: %v", err)
	}
	defer conn.Close()

	daemon, fleet, pause := pb.NewDiscoveryServiceClient(conn), &Fleet{clusters: map[string]*pb.Cluster{}}, firstPause
	for {
		err := follow(ctx, daemon, fleet, func() { pause = firstPause })
		switch status.Code(err) {
		case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented,
			codes.FailedPrecondition:
			log.Fatalf("refused: %v", err)
		}
		if ctx.Err() != nil {
			return
		}
		log.Printf("the stream broke, every cluster stays as it is: %v", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause/2)):
			pause = min(2*pause, longestPause)
		}
	}
}

// follow reads one stream until it breaks, and returns why it did.
func follow(ctx context.Context, daemon pb.DiscoveryServiceClient, fleet *Fleet, onBatch func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A quiet daemon says so in every interval. When three went by, nobody is there.
	silent := fmt.Errorf("nothing was heard for %v", 3*heartbeat)
	watchdog := time.AfterFunc(3*heartbeat, func() { cancel(silent) })
	defer watchdog.Stop()
	stream, err := daemon.WatchClusters(ctx, &pb.WatchClustersRequest{
		ResumeRevision:    fleet.Open(),
		HeartbeatInterval: durationpb.New(heartbeat),
	})
	if err != nil {
		return err
	}
	for {
		batch, err := stream.Recv()
		if context.Cause(ctx) == silent {
			return silent
		}
		if err != nil {
			return err
		}
		watchdog.Reset(3 * heartbeat)
		onBatch()
		for _, event := range fleet.Apply(batch) {
			show(event)
		}
	}
}

func show(event *pb.ClusterEvent) {
	words := []string{fmt.Sprintf("%-10s", strings.TrimPrefix(event.Type.String(), "TYPE_")), event.Cluster.Name}
	if event.Type != pb.ClusterEvent_TYPE_DISENGAGED {
		words = append(words, event.Cluster.Endpoint)
	} else if event.Reason != pb.DisengageReason_DISENGAGE_REASON_UNSPECIFIED {
		words = append(words, strings.TrimPrefix(event.Reason.String(), "DISENGAGE_REASON_"))
	}
	fmt.Println(strings.TrimSpace(strings.Join(append(words, event.Message), "  ")))
}
