package discovery

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	pb "go.miloapis.com/discovery/v1"
)

func TestAddressIsValidated(t *testing.T) {
	for _, each := range []struct{ address, variable, want, problem string }{
		{want: DefaultAddress},
		{variable: "unix:///run/other.sock", want: "unix:///run/other.sock"},
		{address: "unix:///run/given.sock", variable: "unix:///run/other.sock", want: "unix:///run/given.sock"},
		{address: "localhost:8080", want: "localhost:8080"},
		{address: "milo-discovery.milo-system.svc:443", want: "milo-discovery.milo-system.svc:443"},
		{address: "127.0.0.1:1", want: "127.0.0.1:1"},
		{address: "[::1]:65535", want: "[::1]:65535"},
		{address: "[fe80::1%eth0]:443", want: "[fe80::1%eth0]:443"},
		{address: "unix://" + strings.Repeat("/", 107), want: "unix://" + strings.Repeat("/", 107)},
		{address: "unix://" + strings.Repeat("/", 108), problem: "must not exceed 107 bytes"},
		{address: "unix://relative.sock", problem: "must be absolute"},
		{address: "unix:/one/slash", problem: "use unix:///path/to/socket or HOST:PORT"},
		{address: "localhost", problem: "use unix:///path/to/socket or HOST:PORT"},
		{address: "https://localhost:443", problem: "use unix:///path/to/socket or HOST:PORT"},
		{address: "::1:443", problem: "use unix:///path/to/socket or HOST:PORT"},
		{address: "localhost:0", problem: "between 1 and 65535"},
		{address: "localhost:65536", problem: "between 1 and 65535"},
	} {
		t.Setenv(AddressVariable, each.variable)
		got, err := target(each.address)
		if each.problem == "" && (err != nil || got != each.want) {
			t.Errorf("target(%q) with the variable %q = %q, %v; want %q", each.address, each.variable, got, err, each.want)
		}
		if each.problem != "" && (!errors.Is(err, ErrInvalidAddress) || !strings.Contains(err.Error(), each.problem)) {
			t.Errorf("target(%q) error = %v, want %q", each.address, err, each.problem)
		}
	}
}

func TestGRPCTargetKeepsTheZoneOfAnIPv6Address(t *testing.T) {
	connection, err := grpc.NewClient(grpcTarget("[::1%lo]:443"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	if got := connection.CanonicalTarget(); got != "dns:///[::1%lo]:443" {
		t.Errorf("the target is %s, want dns:///[::1%%lo]:443", got)
	}
	_ = connection.Close()
}

func TestDialRejectsInvalidCredentials(t *testing.T) {
	const socket, port = "unix:///run/d.sock", "localhost:443"
	for _, each := range []struct {
		address     string
		credentials Credentials
		problem     string // part of the expected error; empty if the credentials are accepted
	}{
		{socket, Credentials{TokenFile: "token"}, ""},
		{port, Credentials{}, ""},
		{port, Credentials{CAFile: "ca", TokenFile: "token"}, ""},
		{port, Credentials{CAFile: "ca", CertificateFile: "certificate", KeyFile: "key"}, ""},
		{port, Credentials{CAFile: "ca", CertificateFile: "certificate"}, "must be set together"},
		{port, Credentials{CAFile: "ca", KeyFile: "key"}, "must be set together"},
		{port, Credentials{CertificateFile: "certificate", KeyFile: "key"}, "needs TLS"},
		{port, Credentials{TokenFile: "token"}, "unencrypted"},
		{socket, Credentials{CAFile: "ca"}, "is a Unix socket"},
		{socket, Credentials{ServerUID: new(int)}, ""},
		{port, Credentials{ServerUID: new(int)}, "is for Unix sockets"},
	} {
		client, err := Dial(Options{Address: each.address, Credentials: &each.credentials})
		if each.problem == "" {
			if err != nil {
				t.Errorf("%+v at %s: got error %v, want none", each.credentials, each.address, err)
			} else if err := client.Close(); err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, ErrInvalidCredentials) || !strings.Contains(err.Error(), each.problem) {
			t.Errorf("%+v at %s is refused with %v, want %q", each.credentials, each.address, err, each.problem)
		}
	}
	if _, err := Dial(Options{Address: "nowhere"}); !errors.Is(err, ErrInvalidAddress) {
		t.Errorf("Dial() with an invalid address: error = %v, want ErrInvalidAddress", err)
	}
}

func TestCredentialsAreReadFromTheEnvironment(t *testing.T) {
	t.Setenv(TokenVariable, "token")
	t.Setenv(CAVariable, "ca")
	t.Setenv(CertificateVariable, "certificate")
	t.Setenv(KeyVariable, "key")
	client, err := Dial(Options{Address: "localhost:443"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	want := Credentials{TokenFile: "token", CAFile: "ca", CertificateFile: "certificate", KeyFile: "key"}
	if client.credentials != want {
		t.Errorf("got credentials %+v, want %+v", client.credentials, want)
	}
	t.Setenv(ServerUIDVariable, "65532")
	if credentials, err := CredentialsFromEnvironment(); err != nil || *credentials.ServerUID != 65532 {
		t.Errorf("got credentials %+v and error %v, want ServerUID 65532", credentials, err)
	}
	for _, wrong := range []string{"root", "-1", "4294967296"} {
		t.Setenv(ServerUIDVariable, wrong)
		if _, err := Dial(Options{}); !errors.Is(err, ErrInvalidCredentials) {
			t.Errorf("Dial() with server UID %q: error = %v, want ErrInvalidCredentials", wrong, err)
		}
	}
}

func TestServerUIDIsVerified(t *testing.T) {
	directory, err := os.MkdirTemp("", "milo-") // shorter than t.TempDir(): the path of a socket is limited to 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(directory) }()
	path := filepath.Join(directory, "d.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterDiscoveryServiceServer(server, identifiedDaemon{})
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	own, other := os.Getuid(), os.Getuid()+1
	for uid, trusted := range map[int]bool{own: true, other: false} {
		client, err := Dial(Options{Address: "unix://" + path, Credentials: &Credentials{ServerUID: &uid}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Info(t.Context())
		if trusted && err != nil {
			t.Errorf("Info() of a trusted server: error = %v", err)
		}
		if !trusted && (!errors.Is(err, ErrUntrustedServer) || !errors.Is(err, ErrUnavailable)) {
			t.Errorf("Info() of another user's server: error = %v, want ErrUntrustedServer and ErrUnavailable", err)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
	uid := own
	client, err := Dial(Options{Address: "unix://" + path + "x", Credentials: &Credentials{ServerUID: &uid}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if _, err := client.Info(t.Context()); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUntrustedServer) {
		t.Errorf("Info() without a socket: error = %v, want ErrUnavailable", err)
	}
}

func TestSocketPathIsTakenLiterally(t *testing.T) {
	directory, err := os.MkdirTemp("", "milo-") // shorter than t.TempDir(): the path of a socket is limited to 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(directory) }()
	own := os.Getuid()
	for _, name := range []string{"a#b", "a?b", "a%41", "a%zz", "a b", "a;b", "ä"} {
		path := filepath.Join(directory, name)
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		pb.RegisterDiscoveryServiceServer(server, identifiedDaemon{})
		go func() { _ = server.Serve(listener) }()
		for _, credentials := range []Credentials{{}, {ServerUID: &own}} {
			client, err := Dial(Options{Address: "unix://" + path, Credentials: &credentials})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Info(t.Context()); err != nil {
				t.Errorf("%q with %+v: got error %v, want none", name, credentials, err)
			}
			if err := client.Close(); err != nil {
				t.Error(err)
			}
		}
		server.Stop()
	}
}

func TestInvalidCredentialFilesAreReported(t *testing.T) {
	file := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	missing := filepath.Join(t.TempDir(), "missing")
	authority := newAuthority(t)
	ca := file("ca", string(authority.pem))
	certificate, key := authority.issue(t, "client")
	for _, each := range []struct {
		credentials Credentials
		problem     string
	}{
		{Credentials{TokenFile: missing}, "cannot read " + missing},
		{Credentials{TokenFile: file("token", " \n")}, "is empty"},
		{Credentials{TokenFile: file("token", "two\nlines")}, "does not contain a token"},
		{Credentials{TokenFile: file("token", "Grüße")}, "does not contain a token"},
		{Credentials{CAFile: missing}, "cannot read " + missing},
		{Credentials{CAFile: file("ca", "nothing")}, "has no PEM certificate"},
		{Credentials{CAFile: ca, CertificateFile: missing, KeyFile: key}, "cannot read " + missing},
		{Credentials{CAFile: ca, CertificateFile: certificate, KeyFile: missing}, "cannot read " + missing},
		{Credentials{CAFile: ca, CertificateFile: certificate, KeyFile: ca}, "PEM"},
	} {
		address := "localhost:1"
		if each.credentials.CAFile == "" {
			address = "unix:///nowhere.sock"
		}
		client, err := Dial(Options{Address: address, Credentials: &each.credentials})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Info(t.Context())
		if !errors.Is(err, ErrInvalidCredentials) || !strings.Contains(err.Error(), each.problem) {
			t.Errorf("%+v fails with %v, want %q", each.credentials, err, each.problem)
		}
		// A watch retries, because the files may be partially renewed.
		ctx, stop := context.WithCancel(t.Context())
		hooks := Hooks{Disconnected: func(lost error) { err = lost; stop() }}
		if ended := client.Watch(ctx, WatchOptions{Hooks: hooks}, nil); !errors.Is(ended, context.Canceled) {
			t.Errorf("Watch() error = %v, want Canceled", ended)
		}
		if !errors.Is(err, ErrInvalidCredentials) {
			t.Errorf("the watch was disconnected by %v, want ErrInvalidCredentials", err)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}

// identifiedDaemon is a daemon whose server info has the common name of the caller's certificate as the mode, and the
// caller's authorization header as the version.
type identifiedDaemon struct {
	pb.UnimplementedDiscoveryServiceServer
}

func (identifiedDaemon) GetServerInfo(
	ctx context.Context, _ *pb.GetServerInfoRequest,
) (*pb.GetServerInfoResponse, error) {
	caller, _ := peer.FromContext(ctx)
	info := &pb.GetServerInfoResponse{}
	if handshake, ok := caller.AuthInfo.(credentials.TLSInfo); ok && len(handshake.State.PeerCertificates) > 0 {
		info.Mode = handshake.State.PeerCertificates[0].Subject.CommonName
	}
	if tokens := metadata.ValueFromIncomingContext(ctx, "authorization"); len(tokens) == 1 {
		info.Version = tokens[0]
	}
	return info, nil
}

func TestRenewedCredentialFilesAreUsed(t *testing.T) {
	authority := newAuthority(t)
	serverCertificate, serverKey := authority.issue(t, "server")
	pair, err := tls.LoadX509KeyPair(serverCertificate, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AddCert(authority.certificate)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve := func(listener net.Listener) *grpc.Server {
		server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
			Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients,
		})))
		pb.RegisterDiscoveryServiceServer(server, identifiedDaemon{})
		go func() { _ = server.Serve(listener) }()
		return server
	}
	server := serve(listener)

	directory := t.TempDir()
	path := func(name string) string { return filepath.Join(directory, name) }
	write := func(name string, content []byte) {
		if err := os.WriteFile(path(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	renew := func(name string) {
		certificate, key := authority.issue(t, name)
		for from, to := range map[string]string{certificate: "certificate", key: "key"} {
			content, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			write(to, content)
		}
		write("token", []byte(name+"\n"))
	}
	write("ca", authority.pem)
	renew("first")
	client, err := Dial(Options{Address: listener.Addr().String(), Credentials: &Credentials{
		CAFile: path("ca"), CertificateFile: path("certificate"), KeyFile: path("key"), TokenFile: path("token"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	expect := func(certificate, token string) {
		t.Helper()
		info, err := client.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode != certificate || info.Version != "Bearer "+token {
			t.Errorf("the caller has certificate %q and token %q, want %q and %q", info.Mode, info.Version, certificate, token)
		}
	}
	expect("first", "first")
	renew("second")
	expect("first", "second") // the same connection, with the former certificate
	server.Stop()
	if listener, err = net.Listen("tcp", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	server = serve(listener)
	defer server.Stop()
	expect("second", "second")
}

type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{certificate, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue returns the paths of a new certificate and its key.
func (a *authority) issue(t *testing.T, name string) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, private.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	directory := t.TempDir()
	for path, block := range map[string]*pem.Block{
		"certificate": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "EC PRIVATE KEY", Bytes: encoded},
	} {
		if err := os.WriteFile(filepath.Join(directory, path), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(directory, "certificate"), filepath.Join(directory, "key")
}
