// Package apitest provides an in-process API server with many project control planes, for tests of operators.
//
//	api := apitest.Start(0)
//	defer api.Close()
//	daemon := discoverytest.New(t)
//	daemon.Engage(discovery.Cluster{Name: "alpha", Endpoint: api.Endpoint("alpha")})
//
// It serves discovery, list, watch (with streaming lists), get, create, update, merge patch and delete of every
// listable kind of client-go's scheme and of kinds that Serve added, over HTTP/2, to clients that trust its
// certificate. A project can be made to hang, to forbid a resource, or to reject a token. The server validates nothing,
// and supports no selectors.
package apitest

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

const prefix = "/apis/resourcemanager.miloapis.com/v1alpha1/projects/"

// Server is a fake API server. Its methods are safe for concurrent use.
type Server struct {
	http    *httptest.Server
	latency time.Duration
	conns   atomic.Int64
	total   atomic.Int64

	mu       sync.Mutex
	projects map[string]*Project
	catalog  *catalog // applied to new projects
}

// Start starts a server on a loopback address. The server delays each response by latency.
func Start(latency time.Duration) *Server {
	s := &Server{latency: latency, projects: map[string]*Project{}, catalog: builtin()}
	s.http = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.http.EnableHTTP2 = true
	s.http.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	s.http.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			s.conns.Add(1)
		case http.StateClosed, http.StateHijacked:
			s.conns.Add(-1)
		case http.StateActive, http.StateIdle: // already counted
		}
	}
	s.http.StartTLS()
	return s
}

// Close stops the server and closes all connections.
func (s *Server) Close() {
	s.mu.Lock()
	for _, p := range s.projects {
		p.SetHanging(false)
		p.end()
	}
	s.mu.Unlock()
	s.http.CloseClientConnections()
	s.http.Close()
}

// Serve adds kinds to all projects that are created later, with the default names of their resources.
func (s *Server) Serve(kinds ...schema.GroupVersionKind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.catalog = s.catalog.changed(func(served map[schema.GroupVersionResource]schema.GroupVersionKind) {
		for _, kind := range kinds {
			resource, _ := meta.UnsafeGuessKindToResource(kind)
			served[resource] = kind
		}
	})
}

// ServeOnly makes projects that are created later serve only kinds with is(kind) == true.
func (s *Server) ServeOnly(is func(schema.GroupVersionKind) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.catalog = s.catalog.changed(func(served map[schema.GroupVersionResource]schema.GroupVersionKind) {
		maps.DeleteFunc(served, func(_ schema.GroupVersionResource, kind schema.GroupVersionKind) bool { return !is(kind) })
	})
}

// Kinds returns the number of kinds that projects serve if they are created later.
func (s *Server) Kinds() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.catalog.kinds)
}

// Config returns a client configuration for a project.
func (s *Server) Config(project string) *rest.Config {
	return &rest.Config{Host: s.Endpoint(project), TLSClientConfig: rest.TLSClientConfig{CAData: s.CA()}}
}

// CA returns the server's certificate, in PEM.
func (s *Server) CA() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw})
}

// URL returns the URL of the server.
func (s *Server) URL() string { return s.http.URL }

// Endpoint returns the URL of a project's control plane.
func (s *Server) Endpoint(project string) string {
	return s.http.URL + prefix + project + "/control-plane"
}

// Connections returns the number of open connections.
func (s *Server) Connections() int { return int(s.conns.Load()) }

// Requests returns the number of requests to all projects so far.
func (s *Server) Requests() int { return int(s.total.Load()) }

// Project returns a project. The first call creates it.
func (s *Server) Project(name string) *Project {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.projects[name]
	if !ok {
		p = newProject(s.catalog)
		s.projects[name] = p
	}
	return p
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.total.Add(1)
	name, path, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, prefix), "/control-plane")
	if !ok || !strings.HasPrefix(r.URL.Path, prefix) || strings.Contains(name, "/") {
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, "no such path")
		return
	}
	if s.latency > 0 {
		time.Sleep(s.latency)
	}
	s.Project(name).serve(w, r, path)
}

func answer(w http.ResponseWriter, content any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(content)
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	})
}

func version(of uint64) string { return strconv.FormatUint(of, 10) }
