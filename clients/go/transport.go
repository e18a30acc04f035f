package discovery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.miloapis.com/discovery/internal/permit"
)

// maxDiscarded is how much of the response to a rejected request is read, so that its connection can be reused.
const maxDiscarded = 64 << 10

// Transport returns a transport that authenticates requests to the cluster with its current kubeconfig. The URLs of
// requests begin with the Endpoint that the cluster has now. For client-go:
//
//	config := &rest.Config{Host: cluster.Current().Endpoint, Transport: cluster.Transport(), QPS: -1}
//
// The credential is replaced before it expires and after a 401, without interrupting open requests. It is sent to the
// server of its kubeconfig only: redirects are errors, and a cluster that moves is followed. Once the cluster is
// disengaged, requests fail with [*Disengaged], because another project may have the name. A request that still waits
// for a connection when the cluster moves fails too. Clusters of a client share connections.
func (e *EngagedCluster) Transport() http.RoundTripper {
	return &transport{cluster: e, base: e.Current().Endpoint}
}

type transport struct {
	cluster *EngagedCluster
	base    string // the beginning of the URLs of requests
}

// RoundTrip sends the request, and once again with a newer credential if the first one was rejected.
func (t *transport) RoundTrip(request *http.Request) (*http.Response, error) {
	used, place, err := t.cluster.located(request.Context())
	if err != nil {
		closeBody(request)
		return nil, err
	}
	response, err := t.send(place, request, used)
	if err != nil || response.StatusCode != http.StatusUnauthorized {
		return response, err
	}
	newer, place := t.cluster.newerThan(request.Context(), used) // also for the next request
	if newer == nil {
		return response, nil
	}
	again, ok := rewound(request)
	if !ok {
		return response, nil
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, maxDiscarded))
	_ = response.Body.Close()
	return t.send(place, again, newer)
}

// send sends a request, unless the cluster leaves its place before.
func (t *transport) send(place context.Context, request *http.Request, with *Kubeconfig) (*http.Response, error) {
	access, err := t.cluster.accessFor(place, with)
	if err != nil {
		closeBody(request)
		return nil, err
	}
	authorized, err := access.authorize(request, t.base)
	if err != nil {
		closeBody(request)
		return nil, err
	}
	response, err := permit.RoundTrip(func() error { return context.Cause(place) }, access.connections, authorized)
	if err != nil || !isRedirect(response.StatusCode) {
		return response, err
	}
	_ = response.Body.Close()
	return nil, fmt.Errorf("redirect refused: cluster %q responded to %s %s with %s",
		with.Cluster, request.Method, request.URL.Path, response.Status)
}

// rewound returns a copy of the request to send again, and false if its body cannot be read again.
func rewound(request *http.Request) (*http.Request, bool) {
	again := request.Clone(request.Context())
	if request.Body == nil || request.Body == http.NoBody {
		return again, true
	}
	if request.GetBody == nil {
		return nil, false
	}
	body, err := request.GetBody()
	if err != nil {
		return nil, false
	}
	again.Body = body
	return again, true
}

// closeBody closes the body of a request that is not sent, as a RoundTripper has to.
func closeBody(request *http.Request) {
	if request.Body != nil {
		_ = request.Body.Close()
	}
}

func isRedirect(status int) bool {
	return status >= http.StatusMultipleChoices && status < http.StatusBadRequest && status != http.StatusNotModified
}

// newerThan returns a kubeconfig that replaced a rejected one, and the place of its server, or nil if there is none. It
// requests one if necessary.
func (e *EngagedCluster) newerThan(ctx context.Context, rejected *Kubeconfig) (*Kubeconfig, context.Context) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.kubeconfig == rejected {
		if !e.startRenewal(time.Now()) {
			return nil, nil
		}
		renewal, pushed := e.renewal, e.pushed
		e.mu.Unlock()
		select {
		case <-renewal:
		case <-pushed:
		case <-ctx.Done():
		}
		e.mu.Lock()
	}
	if e.ctx.Err() != nil || e.kubeconfig == rejected {
		return nil, nil
	}
	return e.kubeconfig, e.place
}

// access is how to send requests with one kubeconfig.
type access struct {
	server      *url.URL
	header      http.Header
	connections *http.Transport
	release     func()
}

// accessFor returns how to send requests with a kubeconfig, which becomes the current one, or the reason why the cluster
// is no longer at the place.
func (e *EngagedCluster) accessFor(place context.Context, k *Kubeconfig) (*access, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if place.Err() != nil {
		return nil, context.Cause(place)
	}
	if e.access != nil && e.accessOf == k {
		return e.access, nil
	}
	opened, err := e.client.connections.open(k)
	if err != nil {
		return nil, err
	}
	if e.access != nil {
		e.access.release()
	}
	e.access, e.accessOf = opened, k
	if e.ctx.Err() != nil { // nothing else would release it
		opened.release()
	}
	return opened, nil
}

// authorize returns a copy of the request for the server of the kubeconfig, with its credential.
func (a *access) authorize(request *http.Request, base string) (*http.Request, error) {
	before, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	sent := request.Clone(request.Context())
	sent.URL.Scheme, sent.URL.Host, sent.Host = a.server.Scheme, a.server.Host, a.server.Host
	sent.URL.Path = moved(request.URL.Path, before.Path, a.server.Path)
	if request.URL.RawPath != "" {
		sent.URL.RawPath = moved(request.URL.RawPath, before.EscapedPath(), a.server.EscapedPath())
	}
	maps.Copy(sent.Header, a.header)
	return sent, nil
}

// moved returns a path below one directory as a path below another.
func moved(path, from, to string) string {
	return strings.TrimSuffix(to, "/") + strings.TrimPrefix(path, strings.TrimSuffix(from, "/"))
}

// connections are shared by clusters with the same TLS settings. The idle ones are closed with the last of these
// clusters, so that those with former client certificates do not accumulate.
type connections struct {
	mu     sync.Mutex
	shared map[string]*sharedConnections
}

type sharedConnections struct {
	transport *http.Transport
	users     int
}

func (c *connections) open(k *Kubeconfig) (*access, error) {
	file, err := readKubeconfig[embeddedUser](k.Content)
	if err != nil {
		return nil, err
	}
	cluster, user := file.Clusters[0].Cluster, file.Users[0].User
	server, err := url.Parse(cluster.Server)
	if err != nil || server.Host == "" {
		return nil, fmt.Errorf("%w: its server is not an absolute URL", ErrUnusableKubeconfig)
	}
	key := strings.Join([]string{
		string(cluster.CAData), string(user.CertificateData), string(user.KeyData), cluster.TLSServerName,
	}, "\x00")
	c.mu.Lock()
	defer c.mu.Unlock()
	found, ok := c.shared[key]
	if !ok {
		settings, err := tlsSettings(cluster.CAData, user.CertificateData, user.KeyData, cluster.TLSServerName)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnusableKubeconfig, err)
		}
		found = &sharedConnections{transport: newTransport(settings)}
		if c.shared == nil {
			c.shared = map[string]*sharedConnections{}
		}
		c.shared[key] = found
	}
	found.users++
	release := sync.OnceFunc(func() { c.release(key, found) })
	return &access{server: server, header: user.header(), connections: found.transport, release: release}, nil
}

func (c *connections) release(key string, used *sharedConnections) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if used.users--; used.users == 0 {
		delete(c.shared, key)
		used.transport.CloseIdleConnections()
	}
}

// newTransport returns a transport with the timeouts of client-go. Pings detect dead connections below open watches.
func newTransport(settings *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     settings,
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 25,
		IdleConnTimeout:     90 * time.Second,
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
}

// tlsSettings never quotes the key in an error.
func tlsSettings(ca, certificate, key []byte, server string) (*tls.Config, error) {
	settings := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: server}
	if len(ca) > 0 {
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("its certificate authority is not a certificate in PEM")
		}
	}
	if len(certificate) > 0 {
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			return nil, errors.New("its client certificate and key are not a pair in PEM")
		}
		settings.Certificates = []tls.Certificate{pair}
	}
	return settings, nil
}

// header returns the headers that authenticate a request of the user.
func (u embeddedUser) header() http.Header {
	header := http.Header{}
	if u.Token != "" {
		header.Set("Authorization", "Bearer "+u.Token)
	}
	if u.User == "" {
		return header
	}
	header.Set("Impersonate-User", u.User)
	for _, group := range u.Groups {
		header.Add("Impersonate-Group", group)
	}
	for key, values := range u.Extra {
		name := http.CanonicalHeaderKey("Impersonate-Extra-" + escapeHeaderKey(key))
		header[name] = append(header[name], values...)
	}
	return header
}

// escapeHeaderKey encodes each byte that a header may not have with a percent sign, as the API server expects it.
func escapeHeaderKey(key string) string {
	var escaped strings.Builder
	for _, each := range []byte(key) {
		switch {
		case each >= 'a' && each <= 'z', each >= 'A' && each <= 'Z', each >= '0' && each <= '9',
			strings.IndexByte("!#$&'*+-.^_`|~", each) >= 0:
			escaped.WriteByte(each)
		default:
			fmt.Fprintf(&escaped, "%%%02X", each)
		}
	}
	return escaped.String()
}
