// Package credential authenticates requests to a cluster with the kubeconfigs that the daemon issues for it, and
// replaces them without interrupting requests and watches.
package credential

import (
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Kubeconfig is a kubeconfig that the daemon issued.
type Kubeconfig struct {
	Content      []byte
	IssuedAt     time.Time
	RefreshAfter time.Time // when to renew it; zero means never
}

// maxContent is the maximum size of a kubeconfig. One for a single cluster is far smaller.
const maxContent = 1 << 20

// Parse returns the TLS settings and the identity in a kubeconfig.
//
// It rejects kubeconfigs that would run a command or read a file in this process, so that a compromised daemon gets
// access only to the clusters for which it issues credentials.
func Parse(content []byte) (*rest.Config, error) {
	if len(content) > maxContent {
		return nil, fmt.Errorf("kubeconfig refused: it has %d bytes; the limit is %d", len(content), maxContent)
	}
	parsed, err := clientcmd.Load(content)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig refused: %w", err)
	}
	named, ok := parsed.Contexts[parsed.CurrentContext]
	if !ok {
		return nil, fmt.Errorf("kubeconfig refused: its current context %q does not exist", parsed.CurrentContext)
	}
	cluster, ok := parsed.Clusters[named.Cluster]
	if !ok {
		return nil, fmt.Errorf("kubeconfig refused: it has no cluster %q", named.Cluster)
	}
	user, ok := parsed.AuthInfos[named.AuthInfo]
	if !ok {
		return nil, fmt.Errorf("kubeconfig refused: it has no user %q", named.AuthInfo)
	}
	if err := refuse(cluster, user); err != nil {
		return nil, fmt.Errorf("kubeconfig refused: %w", err)
	}
	return &rest.Config{
		Host: cluster.Server,
		TLSClientConfig: rest.TLSClientConfig{
			CAData:     cluster.CertificateAuthorityData,
			CertData:   user.ClientCertificateData,
			KeyData:    user.ClientKeyData,
			ServerName: cluster.TLSServerName,
		},
		BearerToken: user.Token,
		Impersonate: rest.ImpersonationConfig{
			UserName: user.Impersonate,
			UID:      user.ImpersonateUID,
			Groups:   user.ImpersonateGroups,
			Extra:    user.ImpersonateUserExtra,
		},
	}, nil
}

func refuse(cluster *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo) error {
	switch {
	case user.Exec != nil:
		return fmt.Errorf("it runs the command %q; have the daemon issue embedded kubeconfigs", user.Exec.Command)
	case user.AuthProvider != nil:
		return fmt.Errorf("it uses the auth provider %q", user.AuthProvider.Name)
	case user.TokenFile != "":
		return fmt.Errorf("it reads its token from the file %q", user.TokenFile)
	case user.ClientCertificate != "":
		return fmt.Errorf("it reads its client certificate from the file %q", user.ClientCertificate)
	case user.ClientKey != "":
		return fmt.Errorf("it reads its client key from the file %q", user.ClientKey)
	case cluster.CertificateAuthority != "":
		return fmt.Errorf("it reads its certificate authority from the file %q", cluster.CertificateAuthority)
	case cluster.InsecureSkipTLSVerify:
		return errors.New("it disables TLS verification of the server (insecure-skip-tls-verify)")
	case cluster.ProxyURL != "":
		return fmt.Errorf("it uses the proxy %q", cluster.ProxyURL)
	case user.Impersonate == "" && (user.ImpersonateUID != "" || len(user.ImpersonateGroups)+len(user.ImpersonateUserExtra) > 0):
		return errors.New("it sets as-uid, as-groups or as-user-extra, but not as")
	case user.Token == "" && len(user.ClientCertificateData) == 0:
		return errors.New("it has neither a token nor a client certificate")
	}
	return nil
}
