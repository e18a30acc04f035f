package natssource

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

const patience = time.Minute

// natsServer is a nats-server process with its data in a directory, which survives restarts on the same port.
type natsServer struct {
	t         *testing.T
	directory string
	settings  map[string]any
	port      int
	process   *exec.Cmd
}

// startServer starts a server until the end of the test. The settings are those of its configuration file.
func startServer(t *testing.T, settings map[string]any) *natsServer {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &natsServer{t: t, directory: t.TempDir(), settings: settings, port: free.Addr().(*net.TCPAddr).Port}
	_ = free.Close()
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *natsServer) url() string { return fmt.Sprintf("nats://localhost:%d", s.port) }

func (s *natsServer) start() {
	s.t.Helper()
	program, err := exec.LookPath("nats-server")
	if err != nil {
		s.t.Fatal("nats-server is not installed: ./dev go has it; or run: go install github.com/nats-io/nats-server/v2@latest")
	}
	settings := map[string]any{
		"listen": fmt.Sprintf("127.0.0.1:%d", s.port), "jetstream": map[string]any{"store_dir": filepath.Join(s.directory, "jetstream")},
	}
	maps.Copy(settings, s.settings)
	var content bytes.Buffer // JSON is a subset of its format, but for escapes
	encoder := json.NewEncoder(&content)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(settings); err != nil {
		s.t.Fatal(err)
	}
	configuration, log := filepath.Join(s.directory, "nats-server.conf"), filepath.Join(s.directory, "nats-server.log")
	if err := os.WriteFile(configuration, content.Bytes(), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.process = exec.Command(program, "--config", configuration, "--log", log) //nolint:gosec // it is what is tested
	if err := s.process.Start(); err != nil {
		s.t.Fatal(err)
	}
	within(s.t, "the server to answer", func() error {
		connection, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
		if err != nil {
			said, _ := os.ReadFile(log)
			return fmt.Errorf("%w: %s", err, said)
		}
		defer func() { _ = connection.Close() }()
		_, err = bufio.NewReader(connection).ReadString('\n')
		return err
	})
}

func (s *natsServer) kill() {
	if s.process != nil {
		_ = s.process.Process.Kill()
		_ = s.process.Wait()
		s.process = nil
	}
}

func within(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s: %v", patience, what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// publisher writes messages as `milo-objects publish` does.
type publisher struct {
	t          *testing.T
	connection *nats.Conn
	epoch      int
}

func connect(t *testing.T, url string, options ...nats.Option) *publisher {
	t.Helper()
	connection, err := nats.Connect(url, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(connection.Close)
	return &publisher{t: t, connection: connection, epoch: 1}
}

func (p *publisher) call(method string, body any) {
	p.t.Helper()
	var content []byte
	if body != nil {
		content, _ = json.Marshal(body)
	}
	message, err := p.connection.Request("$JS.API."+method, content, patience)
	if err != nil {
		p.t.Fatalf("%s: %v", method, err)
	}
	var answer struct {
		Error *nats.APIError `json:"error"`
	}
	if err := json.Unmarshal(message.Data, &answer); err != nil || answer.Error != nil {
		p.t.Fatalf("%s: %s (%v)", method, message.Data, err)
	}
}

func (p *publisher) createStream() {
	p.t.Helper()
	p.call("STREAM.CREATE.milo", map[string]any{
		"name": "milo", "subjects": []string{"milo.clusters.>", "milo.objects.>", publisherSubject}, "retention": "limits", "discard": "new",
		"storage": "file", "max_msgs_per_subject": 1, "allow_msg_ttl": true, "allow_direct": true, "num_replicas": 1,
	})
}

func (p *publisher) deleteStream() { p.call("STREAM.DELETE.milo", nil) }

func (p *publisher) write(subject string, header map[string]string, body string) {
	p.t.Helper()
	message := nats.NewMsg(subject)
	for name, value := range header {
		message.Header.Set(name, value)
	}
	message.Data = []byte(body)
	answer, err := p.connection.RequestMsg(message, patience)
	if err == nil && strings.Contains(string(answer.Data), `"error"`) {
		err = errors.New(string(answer.Data))
	}
	if err != nil {
		p.t.Fatalf("%s: %v", subject, err)
	}
}

func (p *publisher) beat() {
	p.t.Helper()
	p.write(publisherSubject, nil, "")
}

func scopeSubject(cluster, resource string) string {
	return "milo.objects." + clusterTokens(cluster) + "." + resource
}

// state writes the state of a scope. Resource is GROUP.PLURAL, as in subjects.
func (p *publisher) state(cluster, resource, state string) {
	p.t.Helper()
	p.write(scopeSubject(cluster, resource)+".state", map[string]string{"Milo-State": state}, p.scopeBody(cluster, state))
}

func (p *publisher) scopeBody(cluster, state string) string {
	return fmt.Sprintf(`{"cluster": {"name": %q, "incarnation": "i", "uid": "uid of %s", "labels": {"env": "prod"}, "organization": "acme"},
		"state": {"state": %q, "since": "2026-01-01T00:00:00Z", "problem": ""}, "epoch": %d}   `, cluster, cluster, state, p.epoch)
}

// end writes the end of a scope.
func (p *publisher) end(cluster, resource, reason string) {
	p.t.Helper()
	body := fmt.Sprintf(`{"cluster": {"name": %q}, "state": {"state": "ENDED", "reason": %q}, "epoch": %d}`, cluster, reason, p.epoch)
	p.write(scopeSubject(cluster, resource)+".state", map[string]string{"Milo-State": "ENDED", "Nats-TTL": "3600s"}, body)
}

func (p *publisher) header() map[string]string {
	return map[string]string{"Milo-Epoch": fmt.Sprint(p.epoch)}
}

// put writes an object with some fields.
func (p *publisher) put(cluster, resource, name, fields string) {
	p.t.Helper()
	body := fmt.Sprintf(`{"metadata": {"name": %q, "uid": "uid of %s", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z",
		"labels": {"team": "red"}}%s}`, name, name, fields)
	p.write(scopeSubject(cluster, resource)+"._."+token(name), p.header(), body)
}

func (p *publisher) remove(cluster, resource, name, reason string) {
	p.t.Helper()
	header := p.header()
	header["Milo-Gone"], header["Nats-TTL"] = reason, "3600s"
	p.write(scopeSubject(cluster, resource)+"._."+token(name), header, fmt.Sprintf(`{"metadata": {"name": %q}}`, name))
}

// proxy forwards connections to a server until they are cut.
type proxy struct {
	t      *testing.T
	server *natsServer
	listen net.Listener
	open   chan net.Conn
	passes sync.Mutex // held while connections wait
}

func startProxy(t *testing.T, server *natsServer) *proxy {
	t.Helper()
	listen, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, server: server, listen: listen, open: make(chan net.Conn, 1000)}
	go func() {
		for {
			accepted, err := listen.Accept()
			if err != nil {
				return
			}
			p.passes.Lock()
			p.passes.Unlock() //nolint:staticcheck // it has waited
			forwarded, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", server.port))
			if err != nil {
				_ = accepted.Close()
				continue
			}
			p.open <- accepted
			p.open <- forwarded
			go forward(accepted, forwarded)
			go forward(forwarded, accepted)
		}
	}()
	t.Cleanup(func() { _ = listen.Close(); p.cut() })
	return p
}

func forward(to, from net.Conn) {
	_, _ = bufio.NewReader(from).WriteTo(to)
	_ = to.Close()
}

func (p *proxy) url() string { return "nats://" + p.listen.Addr().String() }

// hold cuts, and has new connections wait until release.
func (p *proxy) hold() {
	p.passes.Lock()
	p.cut()
}

func (p *proxy) release() { p.passes.Unlock() }

// cut closes the open connections.
func (p *proxy) cut() {
	for {
		select {
		case each := <-p.open:
			_ = each.Close()
		default:
			return
		}
	}
}
