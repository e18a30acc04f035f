package discovery_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/discoverytest"
)

// site is an API server that accepts one token, and a fleet with clusters on it.
type site struct {
	t      *testing.T
	daemon *discoverytest.Daemon
	server *httptest.Server
	conns  atomic.Int64

	mu       sync.Mutex
	token    string
	accepted string
	requests []*http.Request
	bodies   []string
	refused  int
	answer   http.HandlerFunc // in place of 200, if not nil
}

func newSite(t *testing.T, configure ...func(*httptest.Server)) *site {
	t.Helper()
	s := &site{t: t, daemon: discoverytest.New(t), token: "first", accepted: "first"}
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.server.EnableHTTP2 = true
	s.server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.conns.Add(1)
		}
	}
	for _, each := range configure {
		each(s.server)
	}
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw})
	s.daemon.SetKubeconfigs(func(cluster discovery.Cluster, _ int) discovery.Kubeconfig {
		s.mu.Lock()
		defer s.mu.Unlock()
		return discovery.Kubeconfig{Content: fmt.Appendf(nil, `{"apiVersion": "v1", "kind": "Config", "current-context": "c",
			"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
			"clusters": [{"name": "c", "cluster": {"server": %q, "certificate-authority-data": %q}}],
			"users": [{"name": "u", "user": {"token": %q, "as": "agent", "as-groups": ["a", "b"], "as-user-extra": {"example.com/x": ["1"]}}}]}`,
			cluster.Endpoint, base64.StdEncoding.EncodeToString(ca), s.token)}
	})
	return s
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer "+s.accepted {
		s.refused++
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.requests, s.bodies = append(s.requests, r), append(s.bodies, string(body))
	if s.answer != nil {
		s.answer(w, r)
	}
}

// set changes the site under its lock.
func (s *site) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// engage engages clusters, and returns them.
func (s *site) engage(names ...string) map[string]*discovery.EngagedCluster {
	s.t.Helper()
	for _, name := range names {
		s.daemon.Engage(discovery.Cluster{Name: name, Endpoint: s.server.URL + "/of/" + name})
	}
	ctx, stop := context.WithCancel(s.t.Context())
	engaged, ended := make(chan *discovery.EngagedCluster, len(names)), make(chan struct{})
	client := s.daemon.Client()
	go func() {
		defer close(ended)
		_ = client.RunFleet(ctx, discovery.FleetOptions{}, func(ctx context.Context, cluster *discovery.EngagedCluster) error {
			engaged <- cluster
			<-ctx.Done()
			return nil
		})
	}()
	s.t.Cleanup(func() { stop(); <-ended })
	found := map[string]*discovery.EngagedCluster{}
	for range names {
		cluster := <-engaged
		found[cluster.Name()] = cluster
	}
	return found
}

func send(t *testing.T, transport http.RoundTripper, method, url string, body io.Reader) (int, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return 0, err
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	return response.StatusCode, nil
}

func TestTransportAuthenticatesWithTheCurrentKubeconfig(t *testing.T) {
	s := newSite(t)
	cluster := s.engage("alpha")["alpha"]
	transport, url := cluster.Transport(), cluster.Current().Endpoint+"/api/v1/namespaces?limit=1"
	if code, err := send(t, transport, http.MethodGet, url, nil); err != nil || code != http.StatusOK {
		t.Fatalf("got status %d, error %v; want 200", code, err)
	}
	first := s.requests[0]
	if first.URL.Path != "/of/alpha/api/v1/namespaces" || first.URL.RawQuery != "limit=1" {
		t.Errorf("the server was asked for %s", first.URL)
	}
	for name, want := range map[string]string{
		"Impersonate-User": "agent", "Impersonate-Group": "a,b", "Impersonate-Extra-Example.com%2fx": "1",
	} {
		if got := strings.Join(first.Header[http.CanonicalHeaderKey(name)], ","); got != want {
			t.Errorf("header %s is %q, want %q (%v)", name, got, want, first.Header)
		}
	}

	s.set(func() { s.token, s.accepted = "second", "second" }) // the first one is revoked
	if code, err := send(t, transport, http.MethodPost, url, strings.NewReader("content")); err != nil || code != http.StatusOK {
		t.Fatalf("with a revoked token: status %d, error %v; want 200 after a renewal", code, err)
	}
	if s.refused != 1 || s.bodies[1] != "content" || s.daemon.Issued("alpha") != 2 {
		t.Errorf("%d requests were refused, the body was %q, and %d kubeconfigs were issued; want 1, content and 2",
			s.refused, s.bodies[1], s.daemon.Issued("alpha"))
	}

	s.set(func() { s.accepted = "another" }) // the daemon has none that is accepted
	for range 3 {
		if code, err := send(t, transport, http.MethodGet, url, nil); err != nil || code != http.StatusUnauthorized {
			t.Fatalf("without an accepted token: status %d, error %v; want 401", code, err)
		}
	}
	if issued := s.daemon.Issued("alpha"); issued > 3 {
		t.Errorf("%d kubeconfigs were issued for rejected requests in a row, want no more than one in a few seconds", issued-2)
	}
}

func TestTransportFollowsTheClusterAndEndsWithIt(t *testing.T) {
	s := newSite(t)
	cluster := s.engage("alpha")["alpha"]
	transport, url := cluster.Transport(), cluster.Current().Endpoint+"/version"
	updated := cluster.Updated()
	s.daemon.Update("alpha", func(c *discovery.Cluster) { c.Endpoint = s.server.URL + "/moved" })
	<-updated
	if code, err := send(t, transport, http.MethodGet, url, nil); err != nil || code != http.StatusOK || s.requests[0].URL.Path != "/moved/version" {
		t.Fatalf("after a move: status %d, error %v, path %s; want 200 of /moved/version", code, err, s.requests[0].URL.Path)
	}

	s.set(func() {
		s.answer = func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.invalid", http.StatusFound)
		}
	})
	if _, err := send(t, transport, http.MethodGet, url, nil); err == nil || !strings.Contains(err.Error(), "redirect refused") {
		t.Errorf("a redirect: error %v, want it refused", err)
	}

	s.daemon.Disengage("alpha", discovery.ReasonDeleted)
	var ended *discovery.Disengaged
	for ended == nil {
		_, err := send(t, transport, http.MethodPost, url, strings.NewReader("content"))
		if !errors.As(err, &ended) && !strings.Contains(fmt.Sprint(err), "redirect refused") {
			t.Fatalf("error %v, want Disengaged", err)
		}
	}
	if ended.Reason != discovery.ReasonDeleted {
		t.Errorf("got %v, want DELETED", ended)
	}
}

func TestRequestThatWaitsForAConnectionIsNotSentToAFormerPlace(t *testing.T) {
	leave := map[string]func(*site){
		"moved": func(s *site) {
			s.daemon.Update("alpha", func(c *discovery.Cluster) { c.Endpoint = s.server.URL + "/moved" })
		},
		"disengaged": func(s *site) { s.daemon.Disengage("alpha", discovery.ReasonDeleted) },
	}
	for _, protocol := range []string{"http/1.1", "h2"} {
		for how, left := range leave {
			t.Run(protocol+" "+how, func(t *testing.T) {
				arrived, opened := make(chan struct{}, 1), make(chan struct{})
				s := newSite(t, func(server *httptest.Server) {
					server.EnableHTTP2 = protocol == "h2"
					server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
						arrived <- struct{}{}
						<-opened
						return nil, nil
					}}
				})
				cluster := s.engage("alpha")["alpha"]
				transport, url, updated := cluster.Transport(), cluster.Current().Endpoint+"/version", cluster.Updated()
				sent := make(chan error)
				go func() {
					_, err := send(t, transport, http.MethodPost, url, strings.NewReader("content"))
					sent <- err
				}()
				<-arrived
				left(s)
				var ended *discovery.Disengaged
				if how == "moved" {
					<-updated
				}
				for how == "disengaged" && ended == nil {
					_, err := cluster.Kubeconfig(t.Context())
					errors.As(err, &ended)
				}
				close(opened)
				err := <-sent
				if how == "moved" && !strings.Contains(fmt.Sprint(err), "moved to another endpoint") ||
					how == "disengaged" && !errors.As(err, &ended) {
					t.Errorf("error %v", err)
				}
				if how == "moved" {
					if code, err := send(t, transport, http.MethodGet, url, nil); err != nil || code != http.StatusOK {
						t.Errorf("afterwards: status %d, error %v; want 200", code, err)
					}
				}
				for _, request := range s.requests {
					if request.URL.Path != "/moved/version" {
						t.Errorf("sent to %s", request.URL.Path)
					}
				}
			})
		}
	}
}

func TestClustersShareConnections(t *testing.T) {
	s := newSite(t)
	for name, cluster := range s.engage("alpha", "beta", "gamma") {
		if code, err := send(t, cluster.Transport(), http.MethodGet, cluster.Current().Endpoint, nil); err != nil || code != http.StatusOK {
			t.Fatalf("%s: status %d, error %v; want 200", name, code, err)
		}
	}
	if got := s.conns.Load(); got != 1 {
		t.Errorf("%d connections, want 1", got)
	}
}

func TestTransportRefusesKubeconfigsThatAreNoAccess(t *testing.T) {
	const form = `{"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": %q, "certificate-authority-data": %q}}],
		"users": [{"name": "u", "user": {"token": "secret", "client-certificate-data": %q, "client-key-data": %q}}]}`
	text := base64.StdEncoding.EncodeToString([]byte("secret"))
	for problem, content := range map[string]string{
		"not an absolute URL":    fmt.Sprintf(form, "alpha", "", "", ""),
		"certificate authority":  fmt.Sprintf(form, "https://alpha.invalid", text, "", ""),
		"client certificate and": fmt.Sprintf(form, "https://alpha.invalid", "", text, text),
	} {
		s := newSite(t)
		s.daemon.SetKubeconfigs(func(discovery.Cluster, int) discovery.Kubeconfig {
			return discovery.Kubeconfig{Content: []byte(content)}
		})
		cluster := s.engage("alpha")["alpha"]
		_, err := send(t, cluster.Transport(), http.MethodPost, "https://alpha.invalid", strings.NewReader("content"))
		if !errors.Is(err, discovery.ErrUnusableKubeconfig) || !strings.Contains(err.Error(), problem) || strings.Contains(err.Error(), "secret") {
			t.Errorf("error = %v, want ErrUnusableKubeconfig with %q and without the secret", err, problem)
		}
	}
}
