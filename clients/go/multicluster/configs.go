package multicluster

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"k8s.io/client-go/rest"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/multicluster/internal/credential"
)

// configs creates the rest.Config of each cluster, from ProjectRestConfig, Kubeconfigs or ConfigFor.
type configs struct {
	options Options
	base    http.RoundTripper // with the identity and TLS settings of ProjectRestConfig; not used with OwnTransports
	pool    credential.Pool   // set with Options.Kubeconfigs
	renewed func(credential.Outcome)
}

func newConfigs(options Options, renewed func(credential.Outcome)) (*configs, error) {
	c := &configs{options: options, renewed: renewed}
	if options.ProjectRestConfig == nil {
		return c, nil
	}
	base, err := rest.TransportFor(options.ProjectRestConfig)
	if err != nil {
		return nil, fmt.Errorf("Options.ProjectRestConfig: %w", err)
	}
	c.base = base
	return c, nil
}

// credential returns the credential of an engagement, or nil without Options.Kubeconfigs. It calls info for each
// request, because the cluster has another incarnation after a restart of the daemon.
func (c *configs) credential(info func() discovery.Cluster) *credential.Credential {
	if !c.options.Kubeconfigs {
		return nil
	}
	pool := &c.pool
	if c.options.OwnTransports {
		pool = &credential.Pool{}
	}
	begun, log := info(), c.options.Logger
	return credential.New(credential.Options{
		Server: begun.Endpoint,
		Issue: func(ctx context.Context) (credential.Kubeconfig, error) {
			issued, err := c.options.Client.Issue(ctx, begun.Name, discovery.IssueOptions{
				TTL: c.options.KubeconfigTTL, Incarnation: info().Incarnation,
			})
			if err != nil {
				return credential.Kubeconfig{}, err
			}
			return received(issued), nil
		},
		Pool: pool,
		Attempted: func(outcome credential.Outcome, err error) {
			c.renewed(outcome)
			if err != nil {
				log.Error(err, "kubeconfig not renewed", "cluster", begun.Name)
			}
		},
		Now: time.Now,
	})
}

func received(k *discovery.Kubeconfig) credential.Kubeconfig {
	return credential.Kubeconfig{Content: k.Content, IssuedAt: k.IssuedAt, RefreshAfter: k.RefreshAfter}
}

func (c *configs) config(ctx context.Context, cluster discovery.Cluster, held *credential.Credential) (*rest.Config, error) {
	switch {
	case c.options.ConfigFor != nil:
		config, err := c.options.ConfigFor(ctx, cluster)
		if err != nil {
			return nil, fmt.Errorf("Options.ConfigFor: %w", err)
		}
		if config == nil {
			return nil, fmt.Errorf("Options.ConfigFor returned no config for %s", cluster.Name)
		}
		return config, nil
	case held != nil:
		if err := held.Ensure(ctx); err != nil {
			return nil, fmt.Errorf("get a kubeconfig: %w", err)
		}
		return &rest.Config{Host: cluster.Endpoint, Transport: held, QPS: unlimited}, nil
	default:
		return c.fromTemplate(cluster.Endpoint), nil
	}
}

// unlimited disables client-go's rate limit, in favor of the API server's priority and fairness. With 0, client-go
// would limit requests to 5 per second.
const unlimited = -1

func (c *configs) fromTemplate(endpoint string) *rest.Config {
	config := rest.CopyConfig(c.options.ProjectRestConfig)
	config.Host = endpoint
	if config.QPS == 0 && config.RateLimiter == nil {
		config.QPS = unlimited
	}
	if c.options.OwnTransports {
		if config.Proxy == nil {
			// client-go shares transports between equal configs, unless they have a proxy function.
			config.Proxy = http.ProxyFromEnvironment
		}
		return config
	}
	// The shared transport has the identity and the TLS settings. In the config they would be applied twice, or rejected;
	// with a proxy function, a dialer or an exec plugin, client-go would open connections for each cluster.
	config.Transport = c.base
	config.TLSClientConfig = rest.TLSClientConfig{}
	config.Username, config.Password, config.BearerToken, config.BearerTokenFile = "", "", "", ""
	config.Impersonate = rest.ImpersonationConfig{}
	config.AuthProvider, config.AuthConfigPersister, config.ExecProvider = nil, nil, nil
	config.WrapTransport, config.Dial, config.Proxy = nil, nil, nil
	return config
}
