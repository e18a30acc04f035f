package natssource

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"go.miloapis.com/discovery/objects"
)

// permissions returns the permissions that the page about NATS has under a title.
func permissions(t *testing.T, title string) (found map[string]any) {
	t.Helper()
	page, err := os.ReadFile("../../../../docs/objects-nats.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "# "+title+"\n")
	_, rest, _ = strings.Cut(rest, "```json\n")
	content, _, _ := strings.Cut(rest, "```")
	if err := json.Unmarshal([]byte(content), &found); err != nil {
		t.Fatal(err)
	}
	return found
}

func TestReaderWithThePermissionsOfThePageReadsThatAndNothingElse(t *testing.T) {
	both := append([]objects.Kind{{Resource: roles}}, kinds...)
	for title, test := range map[string]struct {
		read    Options
		kinds   []objects.Kind
		want    string
		refused Options
		others  []objects.Kind
	}{
		"a consumer of namespaces": {kinds: kinds, want: "db/in-db web/in-web", others: both},
		"the tenant of project web": {
			read: Options{Cluster: "web"}, kinds: both, want: "web/in-web", refused: Options{Cluster: "db"}, others: both,
		},
	} {
		t.Run(title, func(t *testing.T) {
			users := []map[string]any{
				{"user": "publisher", "password": "publisher"},
				{"user": "reader", "password": "reader", "permissions": permissions(t, title)},
			}
			server := startServer(t, map[string]any{"authorization": map[string]any{"users": users}})
			publish := connect(t, server.url(), nats.UserInfo("publisher", "publisher"))
			publish.createStream()
			publish.beat()
			for _, name := range []string{"db", "web"} {
				publish.state(name, namespaceScope, "SYNCED")
				publish.put(name, namespaceScope, "in-"+name, "")
				publish.state(name, roleScope, "SYNCED")
			}
			as := []nats.Option{nats.UserInfo("reader", "reader"), nats.CustomInboxPrefix("_INBOX_reader")}
			test.read.URL, test.read.NATS = server.url(), as
			r := startReader(t, test.read, test.kinds...)
			r.until(test.want)
			publish.put("web", namespaceScope, "later", "")
			r.until(test.want[:len(test.want)-len("web/in-web")] + "web/in-web web/later")
			test.refused.URL, test.refused.NATS = server.url(), as
			view := startReader(t, test.refused, test.others...).untilProblem("check the permissions of these credentials")
			if view.Known != 0 {
				t.Errorf("the view is %+v, want none", view)
			}
		})
	}
}

// authority issues certificates for localhost.
type authority struct {
	t           *testing.T
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
	directory   string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, directory: t.TempDir()}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	of := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	content, err := x509.CreateCertificate(rand.Reader, of, of, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.certificate, _ = x509.ParseCertificate(content)
	a.write("ca.crt", "CERTIFICATE", content)
	return a
}

func (a *authority) write(name, kind string, content []byte) string {
	path := filepath.Join(a.directory, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

func (a *authority) issue(name string) (certificate, key string) {
	a.t.Helper()
	private, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	of := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	content, err := x509.CreateCertificate(rand.Reader, of, a.certificate, private.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	encoded, _ := x509.MarshalPKCS8PrivateKey(private)
	return a.write(name+".crt", "CERTIFICATE", content), a.write(name+".key", "PRIVATE KEY", encoded)
}

// writeCredentials writes a credentials file, as nsc does, and returns the settings of a server that accepts it.
func writeCredentials(t *testing.T, path string) map[string]any {
	t.Helper()
	pairs, public := map[string]nkeys.KeyPair{}, map[string]string{}
	for name, kind := range map[string]nkeys.PrefixByte{
		"operator": nkeys.PrefixByteOperator, "account": nkeys.PrefixByteAccount, "SYS": nkeys.PrefixByteAccount, "user": nkeys.PrefixByteUser,
	} {
		pair, err := nkeys.CreatePair(kind)
		if err != nil {
			t.Fatal(err)
		}
		pairs[name] = pair
		public[name], _ = pair.PublicKey()
	}
	sign := func(by, of, kind string, claims map[string]any) string {
		claims["type"], claims["version"] = kind, 2
		content := map[string]any{"iat": time.Now().Unix(), "iss": public[by], "sub": public[of], "name": of, "nats": claims}
		encoded, _ := json.Marshal(content)
		digest := sha256.Sum256(encoded)
		content["jti"] = hex.EncodeToString(digest[:])
		encoded, _ = json.Marshal(content)
		text := base64.RawURLEncoding.EncodeToString([]byte(`{"typ": "JWT", "alg": "ed25519-nkey"}`)) + "." + base64.RawURLEncoding.EncodeToString(encoded)
		signature, err := pairs[by].Sign([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return text + "." + base64.RawURLEncoding.EncodeToString(signature)
	}
	limits := func(names ...string) map[string]any {
		found := map[string]any{"wildcards": true}
		for _, name := range append(names, "subs", "data", "payload", "imports", "exports", "conn", "leaf") {
			found[name] = -1
		}
		return found
	}
	seed, _ := pairs["user"].Seed()
	token := sign("account", "user", "user", map[string]any{"subs": -1, "data": -1, "payload": -1})
	content := fmt.Sprintf("-----BEGIN NATS USER JWT-----\n%s\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n%s\n------END USER NKEY SEED------\n", token, seed)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"operator": sign("operator", "operator", "operator", map[string]any{}), "system_account": public["SYS"], "resolver": "MEMORY",
		"resolver_preload": map[string]any{
			public["account"]: sign("operator", "account", "account", map[string]any{"limits": limits("mem_storage", "disk_storage", "streams", "consumer")}),
			public["SYS"]:     sign("operator", "SYS", "account", map[string]any{"limits": limits()}),
		},
	}
}

func TestReaderUsesTLSAndACredentialsFile(t *testing.T) {
	ca := newAuthority(t)
	root, file := filepath.Join(ca.directory, "ca.crt"), filepath.Join(ca.directory, "reader.creds")
	certificate, key := ca.issue("server")
	settings := writeCredentials(t, file)
	settings["tls"] = map[string]any{"cert_file": certificate, "key_file": key, "ca_file": root, "verify": true}
	server := startServer(t, settings)
	access := map[string]nats.Option{
		"CA": nats.RootCAs(root), "certificate": nats.ClientCert(ca.issue("client")), "credentials": nats.UserCredentials(file),
	}
	without := func(lacking string) (given []nats.Option) {
		for name, option := range access {
			if name != lacking {
				given = append(given, option)
			}
		}
		return given
	}
	publish := connect(t, server.url(), without("")...)
	publish.createStream()
	publish.state("web", namespaceScope, "SYNCED")
	publish.beat()
	publish.put("web", namespaceScope, "default", "")
	startReader(t, Options{URL: server.url(), NATS: without("")}).until("web/default")
	for lacking := range access {
		startReader(t, Options{URL: server.url(), NATS: without(lacking)}).untilProblem("localhost")
	}
}
