package credential

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
)

// Pool shares transports, and so connections, between clusters with the same TLS settings. The zero value is ready to
// use.
//
// client-go shares transports too, but never closes them. A Pool closes the idle connections of a transport when the
// last credential that uses it is replaced or closed, so that connections with former client certificates do not
// accumulate.
type Pool struct {
	mu     sync.Mutex
	shared map[string]*shared
}

type shared struct {
	transport *http.Transport
	users     int
}

// take returns a transport for the TLS settings, and a function that releases it.
func (p *Pool) take(config *rest.Config) (http.RoundTripper, func(), error) {
	key := keyOf(config)
	p.mu.Lock()
	defer p.mu.Unlock()
	found, ok := p.shared[key]
	if !ok {
		tls, err := rest.TLSConfigFor(config)
		if err != nil {
			return nil, nil, fmt.Errorf("TLS settings: %w", err)
		}
		found = &shared{transport: utilnet.SetTransportDefaults(&http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			TLSHandshakeTimeout: 10 * time.Second,
			TLSClientConfig:     tls,
			MaxIdleConnsPerHost: 25,
			DialContext:         (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		})}
		if p.shared == nil {
			p.shared = map[string]*shared{}
		}
		p.shared[key] = found
	}
	found.users++
	return found.transport, sync.OnceFunc(func() { p.release(key, found) }), nil
}

func (p *Pool) release(key string, used *shared) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if used.users--; used.users == 0 {
		delete(p.shared, key)
		used.transport.CloseIdleConnections()
	}
}

func keyOf(config *rest.Config) string {
	return strings.Join([]string{
		string(config.CAData), string(config.CertData), string(config.KeyData), config.ServerName,
	}, "\x00")
}
