// Namespaces answers over HTTP which project has the namespace with a UID: 200, 404, or 503 with what is not known yet.
//
//	MILO_DISCOVERY_ADDRESS=unix:///run/milo-discovery/discovery.sock go run .
//	curl localhost:8080/namespaces/UID
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/objects"
)

const namespaces = "v1/namespaces"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	client, err := discovery.Dial(discovery.Options{})
	if err != nil {
		log.Fatal(err)
	}
	found, err := objects.New(client, objects.Options{
		Kinds:   []objects.Kind{{Resource: namespaces}},
		Indexes: map[string]objects.Index{"uid": func(o *objects.Object) []string { return []string{o.UID} }},
	})
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("GET /namespaces/{uid}", func(w http.ResponseWriter, r *http.Request) {
		for _, hit := range found.Find("uid", r.PathValue("uid")) {
			_ = json.NewEncoder(w).Encode(map[string]string{"project": hit.Cluster.Name(), "namespace": hit.Name})
			return
		}
		if err := found.View(namespaces).Err(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		http.Error(w, "no project has this namespace", http.StatusNotFound)
	})
	listener, err := net.Listen("tcp", cmp.Or(os.Getenv("LISTEN"), "localhost:8080"))
	if err != nil {
		log.Fatal(err)
	}
	log.Println("listening on", listener.Addr())
	go func() { log.Fatal(http.Serve(listener, nil)) }()
	log.Fatal(found.Run(ctx))
}
