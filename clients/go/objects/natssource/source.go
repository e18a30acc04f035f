package natssource

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"go.miloapis.com/discovery/objects"
)

const (
	firstRetry  = 250 * time.Millisecond
	lastRetry   = 15 * time.Second
	healthyTime = 30 * time.Second // after which a connection that was lost is opened again at once
)

// Options configures a Source. URL is required.
type Options struct {
	// URL is that of a NATS server, or of several, separated by commas.
	URL string
	// NATS are options of the connection, such as [nats.UserCredentials], [nats.RootCAs] and [nats.CustomInboxPrefix].
	// Handlers of events, and reconnection, are the source's own.
	NATS []nats.Option
	// Stream is the name of the stream; "milo" by default.
	Stream string
	// Cluster is the name of the only cluster to read.
	Cluster string
}

// Source reads the objects that publishers wrote. With one kind, or with Options.Cluster, its consumer has a single filter,
// so that NATS' permissions can restrict it to that kind, or to that cluster.
type Source struct{ options Options }

// New returns a source for [objects.NewFrom].
func New(options Options) *Source {
	if options.Stream == "" {
		options.Stream = "milo"
	}
	return &Source{options: options}
}

// Run fills the store until ctx is done. It returns an error at once if two of the kinds differ in their version only,
// since the stream has one.
func (s *Source) Run(ctx context.Context, store *objects.Store) error {
	var filters []string
	resources := map[kindTokens]string{}
	for _, kind := range store.Kinds() {
		of := tokensOf(kind.Resource)
		if other, ok := resources[of]; ok {
			return fmt.Errorf("%s and %s: the stream has one version of a kind", other, kind.Resource)
		}
		resources[of] = kind.Resource
		filters = append(filters, of.filter(s.options.Cluster))
	}
	if s.options.Cluster != "" && len(filters) > 1 {
		filters = []string{"milo.objects." + clusterTokens(s.options.Cluster) + ".>"}
	}
	reading := &reading{reader: newReader(store, resources)}
	for failures := 0; ; {
		began := time.Now()
		err := s.read(ctx, reading, filters)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		reading.do(func(r *reader, _ time.Time) { r.detach(err.Error()) })
		if ctx.Err() != nil {
			return err
		}
		if time.Since(began) > healthyTime {
			failures = 0
		}
		if failures++; failures == 1 {
			slog.Warn("objects cannot be read from NATS; retrying", "error", err)
		}
		sleep(ctx, time.Duration(float64(min(firstRetry<<min(failures-1, 8), lastRetry))*(0.5+rand.Float64()/2)))
	}
}

// read reads until the connection is lost, and returns why.
func (s *Source) read(ctx context.Context, to *reading, filters []string) error {
	connected, err := open(ctx, s.options)
	if err != nil {
		return err
	}
	defer connected.close()
	info, err := connected.stream()
	if err != nil {
		return err
	}
	first := uint64(1)
	to.do(func(r *reader, now time.Time) { first = r.attach(info.lineage, info.lastSequence, now) })
	isLive := false
	// Publishers are listened for first, so that what is said of them is known when all objects are read.
	err = connected.follow([]string{publisherSubject}, 1, func(message stored, _ uint64) {
		to.do(func(r *reader, now time.Time) {
			if isLive || message.at.After(now) {
				message.at = now // clocks may differ
			}
			isLive = true
			heartbeat, err := decodeHeartbeat(message)
			if err != nil {
				r.store.Fail("", err)
				return
			}
			r.heard(message.at, now, heartbeat)
		})
	}, func() { to.do(func(*reader, time.Time) { isLive = true }) })
	if err != nil {
		return err
	}
	idle := func() { to.do(func(r *reader, now time.Time) { r.caughtUp(now) }) }
	err = connected.follow(filters, first, func(message stored, pending uint64) {
		to.do(func(r *reader, now time.Time) {
			if err := r.receive(message, now); err != nil {
				connected.lose(err)
			}
		})
		if pending == 0 && connected.ctx.Err() == nil {
			idle()
		}
	}, idle)
	if err != nil {
		return err
	}
	return connected.wait()
}

// reading is the reader that outlives connections, for one call at a time.
type reading struct {
	mu     sync.Mutex
	reader *reader
}

func (r *reading) do(call func(*reader, time.Time)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	call(r.reader, time.Now().Round(0)) // of the wall clock: a machine that was suspended was away
}

func sleep(ctx context.Context, delay time.Duration) {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// kindTokens are a kind in subjects.
type kindTokens struct{ group, resource string }

func tokensOf(resource string) kindTokens {
	parts := strings.Split(resource, "/") // [GROUP/]VERSION/PLURAL
	group := "core"
	if len(parts) == 3 {
		group = strings.ReplaceAll(parts[0], ".", "_")
	}
	return kindTokens{group, parts[len(parts)-1]}
}

func (k kindTokens) filter(cluster string) string {
	of := "*.*"
	if cluster != "" {
		of = clusterTokens(cluster)
	}
	return fmt.Sprintf("milo.objects.%s.%s.%s.>", of, k.group, k.resource)
}
