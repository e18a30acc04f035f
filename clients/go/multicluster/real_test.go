package multicluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/multicluster"
)

// realVariable is the environment variable for the path of a JSON file that describes a real daemon and real API
// servers. tests/end_to_end/real writes the file. The daemon treats each Secret with a kubeconfig as a cluster, and
// issues that kubeconfig for it.
const realVariable = "MILO_DISCOVERY_TEST_REAL"

const drainLabel = "drain" // the daemon's selector excludes Secrets with this label

// realSite is a site with a daemon process, and projects on several real API servers.
type realSite struct {
	t *testing.T

	Address   string            `json:"address"`
	Platform  string            `json:"platform"` // kubeconfig of the API server with the Secrets
	Namespace string            `json:"namespace"`
	Labels    map[string]string `json:"labels"`  // labels of Secrets that represent clusters
	Servers   []string          `json:"servers"` // kubeconfigs of the API servers with the projects

	daemon   *discovery.Client
	secrets  client.Client
	projects []client.Client

	mu        sync.Mutex
	addresses map[string]string // addresses of projects: each has its own, since the daemon engages one cluster per address
}

// newRealSite returns a site without clusters and objects.
func newRealSite(t *testing.T, path string) *realSite {
	t.Helper()
	s := &realSite{t: t, addresses: map[string]string{}}
	content, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(content, s)
	}
	if err == nil {
		s.daemon, err = discovery.Dial(discovery.Options{Address: s.Address})
	}
	s.must(err)
	t.Cleanup(func() { _ = s.daemon.Close() })
	s.secrets = s.open(s.Platform)
	for _, server := range s.Servers {
		s.projects = append(s.projects, s.open(server))
	}
	s.clear()
	t.Cleanup(s.clear)
	return s
}

func (s *realSite) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *realSite) load(kubeconfig string) *rest.Config {
	s.t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	s.must(err)
	return config
}

func (s *realSite) open(kubeconfig string) client.Client {
	s.t.Helper()
	opened, err := client.New(s.load(kubeconfig), client.Options{})
	s.must(err)
	return opened
}

// clear removes all clusters and objects.
func (s *realSite) clear() {
	s.t.Helper()
	ctx := context.WithoutCancel(s.t.Context()) // also called when the test has ended
	s.must(s.secrets.DeleteAllOf(ctx, &corev1.Secret{}, client.InNamespace(s.Namespace), client.MatchingLabels(s.Labels)))
	within(s.t, "all clusters to be disengaged", func() error {
		listing, err := s.daemon.List(ctx, discovery.Filter{})
		if err == nil && len(listing.Clusters) > 0 {
			return fmt.Errorf("got %d engaged clusters, want none", len(listing.Clusters))
		}
		return err
	})
	for _, project := range s.projects {
		s.must(project.DeleteAllOf(ctx, &corev1.ConfigMap{}, client.InNamespace(metav1.NamespaceDefault)))
	}
}

// server returns the index of a project's API server. Projects on the same server share its objects.
func (s *realSite) server(project string) int {
	if project == "alpha" || project == "gamma" {
		return 0
	}
	return 1 % len(s.Servers)
}

func (s *realSite) client() *discovery.Client { return s.daemon }

func (s *realSite) identify(o *multicluster.Options) { o.Kubeconfigs = true }

func (s *realSite) local() *rest.Config { return s.load(s.Servers[0]) }

func (s *realSite) secret(project string) map[string][]byte {
	s.t.Helper()
	config, err := clientcmd.LoadFromFile(s.Servers[s.server(project)])
	s.must(err)
	for _, each := range config.Clusters {
		each.Server = s.endpoint(project)
	}
	kubeconfig, err := clientcmd.Write(*config)
	s.must(err)
	return map[string][]byte{"kubeconfig": kubeconfig}
}

// forward returns an address from which connections are forwarded to a server, until the test ends.
func (s *realSite) forward(server string) string {
	s.t.Helper()
	to, err := url.Parse(server)
	s.must(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	s.t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			go join(from, to.Host)
		}
	}()
	return "https://" + listener.Addr().String()
}

func join(from net.Conn, address string) {
	defer func() { _ = from.Close() }()
	to, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer func() { _ = to.Close() }()
	go func() {
		_, _ = io.Copy(to, from)
		_ = to.Close()
	}()
	_, _ = io.Copy(from, to)
}

func (s *realSite) engage(names ...string) {
	s.t.Helper()
	for _, name := range names {
		meta := metav1.ObjectMeta{Namespace: s.Namespace, Name: name, Labels: s.Labels}
		s.must(s.secrets.Create(s.t.Context(), &corev1.Secret{ObjectMeta: meta, Data: s.secret(name)}))
	}
}

func (s *realSite) change(name string, change func(*corev1.Secret)) {
	s.t.Helper()
	ctx, found := s.t.Context(), &corev1.Secret{}
	s.must(s.secrets.Get(ctx, client.ObjectKey{Namespace: s.Namespace, Name: name}, found))
	change(found)
	s.must(s.secrets.Update(ctx, found))
}

func (s *realSite) label(name, key, value string) {
	s.t.Helper()
	s.change(name, func(found *corev1.Secret) { found.Labels[key] = value })
}

func (s *realSite) move(name, project string) {
	s.t.Helper()
	s.change(name, func(found *corev1.Secret) { found.Data = s.secret(project) })
}

func (s *realSite) drain(name string) {
	s.t.Helper()
	s.label(name, drainLabel, "yes")
}

func (s *realSite) remove(name string) {
	// Called by several goroutines, which must not call Fatal.
	meta := metav1.ObjectMeta{Namespace: s.Namespace, Name: name}
	if err := s.secrets.Delete(s.t.Context(), &corev1.Secret{ObjectMeta: meta}); err != nil {
		s.t.Error(err)
	}
}

func (s *realSite) endpoint(project string) string {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	address, ok := s.addresses[project]
	if !ok {
		address = s.forward(s.load(s.Servers[s.server(project)]).Host)
		s.addresses[project] = address
	}
	return address
}

func (s *realSite) put(project, name string, data map[string]string) {
	s.t.Helper()
	ctx, in := s.t.Context(), s.projects[s.server(project)]
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name}, Data: data}
	err := in.Create(ctx, object)
	if apierrors.IsAlreadyExists(err) {
		err = in.Update(ctx, object)
	}
	s.must(err)
}

func (s *realSite) data(project, name string) map[string]string {
	s.t.Helper()
	found := &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: metav1.NamespaceDefault, Name: name}
	err := s.projects[s.server(project)].Get(s.t.Context(), key, found)
	if apierrors.IsNotFound(err) {
		return nil
	}
	s.must(err)
	return found.Data
}
