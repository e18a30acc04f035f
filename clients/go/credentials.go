package discovery

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// Environment variables that name the files of [Credentials].
const (
	TokenVariable       = "MILO_DISCOVERY_TOKEN_FILE"
	CAVariable          = "MILO_DISCOVERY_CA_FILE"
	CertificateVariable = "MILO_DISCOVERY_CERTIFICATE_FILE"
	KeyVariable         = "MILO_DISCOVERY_KEY_FILE"
)

// ErrInvalidCredentials is the error of credentials that cannot be read or must not be sent to the address.
var ErrInvalidCredentials = errors.New("invalid credentials")

// Credentials identify the client to the daemon, and the daemon to the client. The zero value has none: on a Unix
// socket the kernel tells the daemon which process connects.
//
// The certificates are read for each connection and the token for each call, so all files may be renewed meanwhile.
type Credentials struct {
	// CAFile has the CA certificates of the daemon, in PEM. It enables TLS, which HOST:PORT addresses alone support.
	CAFile string
	// CertificateFile and KeyFile are a client certificate and its key, in PEM. They need CAFile.
	CertificateFile string
	KeyFile         string
	// TokenFile has a bearer token, such as a projected service account token. At HOST:PORT it needs CAFile, since a
	// token is never sent unencrypted.
	TokenFile string
}

// CredentialsFromEnvironment returns the credentials whose files the environment names.
func CredentialsFromEnvironment() Credentials {
	return Credentials{
		CAFile:          os.Getenv(CAVariable),
		CertificateFile: os.Getenv(CertificateVariable),
		KeyFile:         os.Getenv(KeyVariable),
		TokenFile:       os.Getenv(TokenVariable),
	}
}

// check reports whether the credentials may be used at a gRPC target.
func (c Credentials) check(target string) error {
	isSocket := strings.HasPrefix(target, socketScheme)
	switch {
	case (c.CertificateFile == "") != (c.KeyFile == ""):
		return fmt.Errorf("%w: a client certificate needs its key: set both files or neither", ErrInvalidCredentials)
	case c.CertificateFile != "" && c.CAFile == "":
		return fmt.Errorf("%w: a client certificate needs TLS: set the CA file of the daemon as well", ErrInvalidCredentials)
	case isSocket && c.CAFile != "":
		return fmt.Errorf("%w: %s is a Unix socket and TLS is for HOST:PORT: remove the CA file", ErrInvalidCredentials, target)
	case !isSocket && c.TokenFile != "" && c.CAFile == "":
		return fmt.Errorf("%w: a token is not sent to %s unencrypted: set the CA file as well", ErrInvalidCredentials, target)
	}
	return nil
}

// transport returns the transport credentials of a gRPC connection, which connects more than once.
func (c Credentials) transport() (credentials.TransportCredentials, error) {
	if c.CAFile == "" {
		return insecure.NewCredentials(), nil
	}
	current, err := c.tls()
	if err != nil {
		return nil, err
	}
	return rereading{TransportCredentials: current, files: c}, nil
}

// rereading are TLS credentials whose files are read for each handshake.
type rereading struct {
	credentials.TransportCredentials
	files Credentials
}

func (r rereading) ClientHandshake(
	ctx context.Context, authority string, conn net.Conn,
) (net.Conn, credentials.AuthInfo, error) {
	current, err := r.files.tls()
	if err != nil {
		return nil, nil, err
	}
	return current.ClientHandshake(ctx, authority, conn)
}

func (r rereading) Clone() credentials.TransportCredentials {
	return rereading{TransportCredentials: r.TransportCredentials.Clone(), files: r.files}
}

func (c Credentials) tls() (credentials.TransportCredentials, error) {
	ca, err := read(c.CAFile)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if !config.RootCAs.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%w: %s has no PEM certificate", ErrInvalidCredentials, c.CAFile)
	}
	if c.CertificateFile != "" {
		certificate, err := c.certificate()
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return credentials.NewTLS(config), nil
}

func (c Credentials) certificate() (tls.Certificate, error) {
	certificate, err := read(c.CertificateFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := read(c.KeyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%w: %s and %s: %w", ErrInvalidCredentials, c.CertificateFile, c.KeyFile, err)
	}
	return pair, nil
}

// authorize returns the context of a new call, which carries the token.
func (c Credentials) authorize(ctx context.Context) (context.Context, error) {
	if c.TokenFile == "" {
		return ctx, nil
	}
	content, err := read(c.TokenFile)
	if err != nil {
		return nil, err
	}
	token := bytes.TrimSpace(content)
	for _, char := range token {
		if char <= ' ' || char > '~' {
			return nil, fmt.Errorf("%w: %s has no token", ErrInvalidCredentials, c.TokenFile)
		}
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+string(token)), nil
}

func read(path string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		var cause *fs.PathError
		if errors.As(err, &cause) {
			err = cause.Err
		}
		return nil, fmt.Errorf("%w: cannot read %s: %w", ErrInvalidCredentials, path, err)
	}
	if len(bytes.TrimSpace(content)) == 0 {
		return nil, fmt.Errorf("%w: %s is empty", ErrInvalidCredentials, path)
	}
	return content, nil
}
