package credential

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// issuer issues scripted kubeconfigs in place of the daemon.
type issuer struct {
	mu     sync.Mutex
	token  string
	number int
	err    error
	calls  atomic.Int64
	gate   chan struct{} // if not nil, calls block until it is closed
}

func (i *issuer) issue(ctx context.Context) (Kubeconfig, error) {
	i.calls.Add(1)
	if i.gate != nil {
		<-i.gate
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return kubeconfig(i.token, i.number), i.err
}

// testServer is the server of all kubeconfigs, and Options.Server, so that requests keep the URL of the test.
const testServer = "http://127.0.0.1"

func kubeconfig(token string, number int) Kubeconfig {
	return Kubeconfig{IssuedAt: time.Unix(int64(number), 0), Content: []byte(`{"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": "` + testServer + `"}}],
		"users": [{"name": "u", "user": {"token": "` + token + `"}}]}`)}
}

func newCredential(of *issuer, now func() time.Time) (*Credential, *[]Outcome) {
	outcomes := &[]Outcome{}
	return New(Options{
		Server: testServer, Issue: of.issue, Pool: &Pool{}, Now: now,
		Attempted: func(outcome Outcome, _ error) { *outcomes = append(*outcomes, outcome) },
	}), outcomes
}

// accepting starts a server that accepts one token, and returns it with the bodies of the accepted requests.
func accepting(t *testing.T, token string) (*httptest.Server, *[]string) {
	bodies := &[]string{}
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Header.Get("Authorization") != "Bearer "+token {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		*bodies = append(*bodies, string(body))
	}))
	t.Cleanup(server.Close)
	return server, bodies
}

func post(t *testing.T, c *Credential, url string, body io.Reader) int {
	t.Helper()
	request, err := http.NewRequest(http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	return response.StatusCode
}

func TestUnauthorizedRequestIsRetriedWithItsBody(t *testing.T) {
	server, bodies := accepting(t, "new")
	c, outcomes := newCredential(&issuer{token: "new", number: 2}, time.Now)
	if err := c.Offer(kubeconfig("old", 1)); err != nil {
		t.Fatal(err)
	}
	if code := post(t, c, server.URL, strings.NewReader("content")); code != http.StatusOK {
		t.Fatalf("status %d, want 200", code)
	}
	if len(*bodies) != 1 || (*bodies)[0] != "content" || len(*outcomes) != 1 || (*outcomes)[0] != Renewed {
		t.Errorf("the server received %q, with outcomes %v; want content and [renewed]", *bodies, *outcomes)
	}
}

func TestUnauthorizedResponseIsReturnedIfRequestBodyCannotBeResent(t *testing.T) {
	server, _ := accepting(t, "new")
	c, _ := newCredential(&issuer{token: "new", number: 2}, time.Now)
	if err := c.Offer(kubeconfig("old", 1)); err != nil {
		t.Fatal(err)
	}
	if code := post(t, c, server.URL, io.MultiReader(strings.NewReader("once"))); code != http.StatusUnauthorized {
		t.Fatalf("status %d, want 401", code)
	}
	// The credential is still renewed, for the next request.
	if code := post(t, c, server.URL, strings.NewReader("again")); code != http.StatusOK {
		t.Fatalf("status %d, want 200", code)
	}
}

func TestBodyForARetryIsOpenedOnlyForARetry(t *testing.T) {
	server, _ := accepting(t, "new")
	c, _ := newCredential(&issuer{token: "old", number: 1}, time.Now)
	if err := c.Offer(kubeconfig("old", 1)); err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequest(http.MethodPost, server.URL, strings.NewReader("content"))
	if err != nil {
		t.Fatal(err)
	}
	opened := 0
	request.GetBody = func() (io.ReadCloser, error) {
		opened++
		return io.NopCloser(strings.NewReader("content")), nil
	}
	response, err := c.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusUnauthorized || opened != 0 {
		t.Errorf("status %d with %d bodies opened, and none of them closed; want 401 with none", response.StatusCode, opened)
	}
}

func TestUnauthorizedResponseIsReturnedIfDaemonHasNoNewerKubeconfig(t *testing.T) {
	server, _ := accepting(t, "new")
	of := &issuer{token: "old", number: 1}
	now := time.Unix(1000, 0)
	c, outcomes := newCredential(of, func() time.Time { return now })
	if err := c.Offer(kubeconfig("old", 1)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if code := post(t, c, server.URL, nil); code != http.StatusUnauthorized {
			t.Fatalf("status %d, want 401", code)
		}
	}
	if of.calls.Load() != 1 || (*outcomes)[0] != Unchanged {
		t.Errorf("%d calls with outcomes %v, want one with unchanged", of.calls.Load(), *outcomes)
	}
	now = now.Add(minRenewalInterval)
	post(t, c, server.URL, nil)
	if of.calls.Load() != 2 {
		t.Errorf("%d calls after the minimum interval, want 2", of.calls.Load())
	}
}

func TestRenewalsAreSingleFlightAndShared(t *testing.T) {
	server, _ := accepting(t, "new")
	of := &issuer{token: "new", number: 2, gate: make(chan struct{})}
	c, _ := newCredential(of, time.Now)
	if err := c.Offer(kubeconfig("old", 1)); err != nil {
		t.Fatal(err)
	}
	var callers sync.WaitGroup
	var served atomic.Int64
	for range 20 {
		callers.Go(func() {
			request, _ := http.NewRequest(http.MethodGet, server.URL, nil)
			if response, err := c.RoundTrip(request); err == nil && response.StatusCode == http.StatusOK {
				_ = response.Body.Close()
				served.Add(1)
			}
		})
	}
	for of.calls.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	close(of.gate)
	callers.Wait()
	if served.Load() != 20 || of.calls.Load() != 1 {
		t.Errorf("%d requests succeeded with %d calls of the daemon, want 20 and 1", served.Load(), of.calls.Load())
	}
}

func TestRequestRenewsDueKubeconfigInTheBackground(t *testing.T) {
	server, _ := accepting(t, "held")
	of := &issuer{token: "held", number: 2}
	now := time.Unix(1000, 0)
	c, _ := newCredential(of, func() time.Time { return now })
	due := kubeconfig("held", 1)
	due.RefreshAfter = now.Add(time.Minute)
	if err := c.Offer(due); err != nil {
		t.Fatal(err)
	}
	post(t, c, server.URL, nil)
	if of.calls.Load() != 0 {
		t.Fatal("the kubeconfig was renewed before it was due")
	}
	now = now.Add(2 * time.Minute)
	post(t, c, server.URL, nil)
	for of.calls.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
}

func TestCredentialKeepsKubeconfigWithNewestIssueTime(t *testing.T) {
	server, _ := accepting(t, "second")
	c, _ := newCredential(&issuer{err: errors.New("down")}, time.Now)
	for _, each := range []Kubeconfig{kubeconfig("second", 2), kubeconfig("first", 1)} {
		if err := c.Offer(each); err != nil {
			t.Fatal(err)
		}
	}
	if code := post(t, c, server.URL, nil); code != http.StatusOK {
		t.Errorf("status %d, want 200", code)
	}
}

func TestRequestGoesToServerOfItsCredential(t *testing.T) {
	var paths []string
	record := func(token string) *httptest.Server {
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			paths = append(paths, token+" "+r.Host+r.URL.EscapedPath()+"?"+r.URL.RawQuery+" "+r.Header.Get("Authorization"))
		}))
		t.Cleanup(server.Close)
		return server
	}
	first, second := record("first"), record("second")
	at := func(server string, token string, number int) Kubeconfig {
		moved := kubeconfig(token, number)
		moved.Content = bytes.ReplaceAll(moved.Content, []byte(testServer), []byte(server))
		return moved
	}
	c := New(Options{Server: first.URL + "/projects/a", Pool: &Pool{}, Now: time.Now, Attempted: func(Outcome, error) {}})
	moves := []struct{ server, path string }{
		{first.URL + "/projects/a", "/projects/a"}, {second.URL + "/b", "/b"}, {second.URL, ""}, {first.URL + "/c/", "/c"},
	}
	want := make([]string, 0, len(moves))
	for i, each := range moves {
		token := fmt.Sprintf("token-%d", i)
		if err := c.Offer(at(each.server, token, i+1)); err != nil {
			t.Fatal(err)
		}
		post(t, c, first.URL+"/projects/a/api/with%2Fslash?x=y", nil)
		name, host := "first", strings.TrimPrefix(first.URL, "http://")
		if strings.HasPrefix(each.server, second.URL) {
			name, host = "second", strings.TrimPrefix(second.URL, "http://")
		}
		want = append(want, name+" "+host+each.path+"/api/with%2Fslash?x=y Bearer "+token)
	}
	if !slices.Equal(paths, want) {
		t.Errorf("the requests are %q, want %q", paths, want)
	}
	if err := c.Offer(at("nowhere", "token", 9)); err == nil || !strings.HasPrefix(err.Error(), "kubeconfig refused") {
		t.Errorf("Offer() with a server that is not a URL: error = %v, want kubeconfig refused", err)
	}
}

func TestKubeconfigIsReplacedAfterTheClockWasSetBack(t *testing.T) {
	c, _ := newCredential(&issuer{}, func() time.Time { return time.Unix(1000, 0) })
	if err := errors.Join(c.Offer(kubeconfig("before", 5000)), c.Offer(kubeconfig("after", 1000))); err != nil {
		t.Fatal(err)
	}
	if got := c.held.from.IssuedAt; !got.Equal(time.Unix(1000, 0)) {
		t.Errorf("the kubeconfig issued at %v is used, want the one issued at 1000", got)
	}
}

func TestClosedCredentialReleasesItsTransport(t *testing.T) {
	pool := &Pool{}
	c := New(Options{Server: testServer, Pool: pool, Now: time.Now, Attempted: func(Outcome, error) {}})
	if err := c.Offer(kubeconfig("token", 1)); err != nil {
		t.Fatal(err)
	}
	if err := c.Offer(kubeconfig("another", 2)); err != nil || len(pool.shared) != 1 {
		t.Fatalf("Offer() error = %v; %d transports for the same TLS settings, want 1", err, len(pool.shared))
	}
	c.Close()
	request, _ := http.NewRequest(http.MethodGet, "http://127.0.0.1", nil)
	if _, err := c.RoundTrip(request); !errors.Is(err, errClosed) || len(pool.shared) != 0 {
		t.Errorf("RoundTrip() error = %v, want errClosed; %d transports, want none", err, len(pool.shared))
	}
}

func TestCloseCancelsRenewalInFlight(t *testing.T) {
	asked := make(chan struct{})
	attempted := false
	c := New(Options{
		Issue: func(ctx context.Context) (Kubeconfig, error) {
			close(asked)
			<-ctx.Done()
			return Kubeconfig{}, ctx.Err()
		},
		Pool: &Pool{}, Now: time.Now, Attempted: func(Outcome, error) { attempted = true },
	})
	body := &closing{Reader: strings.NewReader("content")}
	request, err := http.NewRequest(http.MethodPost, "http://127.0.0.1", body)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := c.RoundTrip(request)
		ended <- err
	}()
	<-asked
	c.Close()
	if err := <-ended; !errors.Is(err, errClosed) {
		t.Errorf("RoundTrip() error = %v, want errClosed", err)
	}
	if attempted || !body.closed {
		t.Errorf("counted as an attempt: %t, want false; body closed: %t, want true", attempted, body.closed)
	}
}

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error {
	c.closed = true
	return nil
}

func TestParseRejectsUnsafeOrInconsistentKubeconfigs(t *testing.T) {
	good := string(kubeconfig("x", 1).Content)
	for name, content := range map[string]string{
		"no YAML":                    "\x00{",
		"no context":                 `{"kind": "Config"}`,
		"another context":            strings.Replace(good, `"current-context": "c"`, `"current-context": "d"`, 1),
		"another cluster":            strings.Replace(good, `"cluster": "c"`, `"cluster": "d"`, 1),
		"another user":               strings.Replace(good, `"user": "u"`, `"user": "v"`, 1),
		"a file for the CA":          strings.Replace(good, `"server"`, `"certificate-authority": "/etc/passwd", "server"`, 1),
		"no verification":            strings.Replace(good, `"server"`, `"insecure-skip-tls-verify": true, "server"`, 1),
		"a proxy":                    strings.Replace(good, `"server"`, `"proxy-url": "http://elsewhere", "server"`, 1),
		"a file for the key":         strings.Replace(good, `"token"`, `"client-key": "/etc/passwd", "token"`, 1),
		"a file for the certificate": strings.Replace(good, `"token"`, `"client-certificate": "/etc/passwd", "token"`, 1),
		"more than the maximum size": good + strings.Repeat(" ", maxContent),
	} {
		if _, err := Parse([]byte(content)); err == nil || !strings.HasPrefix(err.Error(), "kubeconfig refused") {
			t.Errorf("Parse() with %s: error = %v, want kubeconfig refused", name, err)
		}
	}
	if config, err := Parse([]byte(good)); err != nil || config.BearerToken != "x" {
		t.Errorf("Parse() = %v, %v; want the token x", config, err)
	}
}

func TestPushedKubeconfigUnblocksRequestThatWaitsForTheIssuer(t *testing.T) {
	server, _ := accepting(t, "pushed")
	of := &issuer{err: errors.New("the issuer is down"), gate: make(chan struct{})}
	c, _ := newCredential(of, time.Now)
	for _, first := range []string{"", "refused"} {
		if first != "" {
			c, _ = newCredential(of, time.Now)
			if err := c.Offer(kubeconfig(first, 1)); err != nil {
				t.Fatal(err)
			}
		}
		before := of.calls.Load()
		code := make(chan int)
		go func() { code <- post(t, c, server.URL, nil) }()
		for of.calls.Load() == before {
			time.Sleep(time.Millisecond)
		}
		if err := c.Offer(kubeconfig("pushed", 2)); err != nil {
			t.Fatal(err)
		}
		if found := <-code; found != http.StatusOK { // while the request to the issuer is pending
			t.Errorf("with the former token %q: status %d, want 200", first, found)
		}
	}
	close(of.gate)
}
