package objects

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
)

func TestAClusterThatStopsAnsweringIsStale(t *testing.T) {
	before, silent := answerTime, silenceTime
	answerTime, silenceTime = 50*time.Millisecond, 1200*time.Millisecond // client-go lists again after a watch of less than a second
	t.Cleanup(func() { answerTime, silenceTime = before, silent })
	watches, release := make(chan struct{}, 10), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") == "" {
			_, _ = fmt.Fprint(w, `{"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "a", "uid": "1"}}]}`)
			return
		}
		watches <- struct{}{}
		if len(watches) == 1 { // it is cut after an event; the next one hangs
			_, _ = fmt.Fprintln(w, `{"type": "ADDED", "object": {"metadata": {"name": "b", "uid": "2", "resourceVersion": "2"}}}`)
			w.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
			return
		}
		select {
		case <-release: // it is answered, and hangs after that: so do all further ones
			release = nil
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(server.Close)
	daemon := discoverytest.New(t)
	daemon.Engage(discovery.Cluster{Name: "alpha", Endpoint: server.URL})
	changes := make(chan Change, 100)
	found, err := New(daemon.Client(), Options{
		Kinds:      []Kind{{Resource: "v1/things"}},
		OnChange:   func(change Change) { changes <- change },
		RESTConfig: func(*discovery.EngagedCluster) (*rest.Config, error) { return &rest.Config{Host: server.URL}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = found.Run(ctx)
	}()
	expect := func(want string) {
		t.Helper()
		if got := told([]Change{<-changes}); got != want {
			t.Errorf("told %q, want %q", got, want)
		}
	}
	expect("+a/1")
	expect("SYNCED")
	expect("+b/2")
	heard := time.Now()
	expect("STALE")
	view := found.View("v1/things")
	if len(view.Outdated) != 1 || !strings.Contains(view.Outdated[0].Problem, "not answered within") || view.Err() != nil || view.StaleSince().IsZero() {
		t.Errorf("the view is %+v, want alpha outdated", view)
	}
	if view.StaleSince().After(heard) {
		t.Errorf("all is known up to %v, but the last event arrived before %v", view.StaleSince(), heard)
	}
	release <- struct{}{}
	expect("SYNCED")
	expect("STALE") // found by a stranger: it was noticed only when the watch was to end, after up to ten minutes
	stop()
	<-ended
}
