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
	"strconv"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// Environment variables of [Credentials].
const (
	TokenVariable       = "MILO_DISCOVERY_TOKEN_FILE"
	CAVariable          = "MILO_DISCOVERY_CA_FILE"
	CertificateVariable = "MILO_DISCOVERY_CERTIFICATE_FILE"
	KeyVariable         = "MILO_DISCOVERY_KEY_FILE"
	ServerUIDVariable   = "MILO_DISCOVERY_SERVER_UID"
)

// ErrInvalidCredentials is returned when credentials are incomplete or invalid, cannot be read, or must not be used
// with the address.
var ErrInvalidCredentials = errors.New("invalid credentials")

// ErrUntrustedServer is returned when the server of a Unix socket does not run as [Credentials].ServerUID, or when its
// user cannot be determined. The error also matches [ErrUnavailable], so watches retry.
var ErrUntrustedServer = errors.New("untrusted server")

// Credentials authenticates the client and the daemon to each other. The zero value has no credentials: on a Unix
// socket, the kernel reports the user of the client to the daemon.
//
// The certificates are read for each connection and the token for each call, so all files may be renewed in place.
type Credentials struct {
	// CAFile contains the CA certificates that verify the daemon, in PEM. It enables TLS, which only HOST:PORT addresses
	// support.
	CAFile string
	// CertificateFile and KeyFile are a client certificate and its key, in PEM. They need CAFile.
	CertificateFile string
	KeyFile         string
	// TokenFile contains a bearer token, such as a projected service account token. With a HOST:PORT address it needs
	// CAFile, since a token is never sent over a network unencrypted.
	TokenFile string
	// ServerUID is the user ID that the server of a Unix socket must run as. It is verified for each connection, on Linux.
	ServerUID *int
}

// CredentialsFromEnvironment returns the credentials of the environment variables.
func CredentialsFromEnvironment() (Credentials, error) {
	credentials := Credentials{
		CAFile:          os.Getenv(CAVariable),
		CertificateFile: os.Getenv(CertificateVariable),
		KeyFile:         os.Getenv(KeyVariable),
		TokenFile:       os.Getenv(TokenVariable),
	}
	if value := os.Getenv(ServerUIDVariable); value != "" {
		uid, err := strconv.ParseUint(value, 10, 31)
		if err != nil {
			return Credentials{}, fmt.Errorf("%w: %s must be a user ID, not %q", ErrInvalidCredentials, ServerUIDVariable, value)
		}
		number := int(uid)
		credentials.ServerUID = &number
	}
	return credentials, nil
}

// check returns an error if the credentials are incomplete, or must not be used at an address.
func (c Credentials) check(target string) error {
	isSocket := strings.HasPrefix(target, socketScheme)
	switch {
	case (c.CertificateFile == "") != (c.KeyFile == ""):
		return fmt.Errorf("%w: CertificateFile and KeyFile must be set together", ErrInvalidCredentials)
	case c.CertificateFile != "" && c.CAFile == "":
		return fmt.Errorf("%w: CertificateFile needs TLS: set CAFile as well", ErrInvalidCredentials)
	case isSocket && c.CAFile != "":
		return fmt.Errorf("%w: %s is a Unix socket, which has no TLS: remove CAFile", ErrInvalidCredentials, target)
	case !isSocket && c.ServerUID != nil:
		return fmt.Errorf("%w: ServerUID is for Unix sockets, but %s is not one: remove ServerUID", ErrInvalidCredentials,
			target)
	case !isSocket && c.TokenFile != "" && c.CAFile == "":
		return fmt.Errorf("%w: the token would be sent to %s unencrypted: set CAFile to use TLS", ErrInvalidCredentials, target)
	}
	return nil
}

// transport returns the transport credentials of a gRPC connection, which reads the files again when it reconnects.
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

// dialSocket connects to the daemon's Unix socket and verifies the user that runs the server.
func (c Credentials) dialSocket(ctx context.Context, path string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	uid, err := peerUID(conn.(*net.UnixConn))
	if err == nil && uid == *c.ServerUID {
		return conn, nil
	}
	_ = conn.Close() // nothing was sent
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUntrustedServer, path, err)
	}
	return nil, fmt.Errorf("%w: the server of %s runs as uid %d, expected %d", ErrUntrustedServer, path, uid, *c.ServerUID)
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

// authorize returns the context for a new call, with the current token in its metadata.
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
			return nil, fmt.Errorf("%w: %s does not contain a token: it must be one word of printable ASCII characters", ErrInvalidCredentials,
				c.TokenFile)
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
