package multicluster

import (
	"encoding/json"
	"net/http"

	"go.miloapis.com/discovery/multicluster/internal/prompt"
)

// debugCluster is a cluster in the response of the debug handler.
type debugCluster struct {
	Name     string `json:"name"`
	UID      string `json:"uid"`
	Endpoint string `json:"endpoint"`
	State    state  `json:"state"`
	Failure  string `json:"failure,omitempty"`
	// Unsynced are the kinds whose informers have not synced, or failed after they synced.
	Unsynced []prompt.Unsynced `json:"unsynced,omitempty"`
}

// DebugHandler returns a handler that lists the clusters, ordered by name. With ?format=names it lists the names of the
// clusters that Get returns, one per line, like `milo-discovery list -o name`. Serve it beside the metrics:
//
//	metricsserver.Options{ExtraHandlers: map[string]http.Handler{"/debug/clusters": provider.DebugHandler()}}
func (p *Provider) DebugHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entries := p.snapshot()
		if r.URL.Query().Get("format") == "names" {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			for _, e := range entries {
				if e.cluster() != nil {
					_, _ = w.Write([]byte(string(e.name) + "\n"))
				}
			}
			return
		}
		clusters := make([]debugCluster, len(entries))
		for i, e := range entries {
			clusters[i] = e.debug()
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(clusters)
	})
}

func (e *entry) debug() debugCluster {
	unsynced := e.unsynced()
	e.mu.Lock()
	defer e.mu.Unlock()
	shown := debugCluster{Name: e.last.Name, UID: e.last.UID, Endpoint: e.last.Endpoint, State: e.now, Unsynced: unsynced}
	if e.failure != nil {
		shown.Failure = e.failure.Error()
	}
	return shown
}
