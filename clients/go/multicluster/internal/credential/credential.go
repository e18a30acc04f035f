package credential

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// Outcome is the outcome of an attempt to renew a credential.
type Outcome string

// The outcomes of an attempt to renew a credential.
const (
	Renewed   Outcome = "renewed"
	Unchanged Outcome = "unchanged"
	Failed    Outcome = "failed"
)

const (
	issueTimeout = 15 * time.Second
	// Minimum interval between requests that replace a kubeconfig, even if the daemon's kubeconfigs are rejected or expire
	// soon.
	minRenewalInterval = 5 * time.Second
)

// Options configures a Credential.
type Options struct {
	// Server is the URL with which requests begin. It is replaced by the server of the current kubeconfig, so that a
	// credential is sent only to its own server.
	Server string
	// Issue requests a kubeconfig from the daemon.
	Issue func(context.Context) (Kubeconfig, error)
	// Pool shares transports with other credentials.
	Pool *Pool
	// Attempted is called after each attempt to renew.
	Attempted func(Outcome, error)
	// Now returns the current time.
	Now func() time.Time
}

// Credential is a round tripper that adds the newest credential of one cluster to each request. Open watches stay open
// when it is replaced.
type Credential struct {
	options Options
	ctx     context.Context // for attempts; canceled by Close
	cancel  context.CancelFunc

	mu      sync.Mutex
	held    *held
	renewal *renewal
	offered chan struct{} // closed when the daemon pushes the next kubeconfig
	notYet  time.Time     // no attempt to replace the kubeconfig before this time; reset when the daemon pushes one
	closed  bool
}

// held is a kubeconfig in use, with its transport.
type held struct {
	from      Kubeconfig
	server    *url.URL
	transport http.RoundTripper
	release   func()
}

// send sends a request to the server of the kubeconfig, in place of the server with which the request's URL begins.
func (h *held) send(request *http.Request, instead string) (*http.Response, error) {
	if h.server.String() == instead {
		return h.transport.RoundTrip(request)
	}
	before, err := url.Parse(instead)
	if err != nil {
		return nil, err
	}
	moved := request.Clone(request.Context())
	moved.URL.Scheme, moved.URL.Host, moved.Host = h.server.Scheme, h.server.Host, h.server.Host
	moved.URL.Path = moveBelow(h.server.Path, before.Path, request.URL.Path)
	if request.URL.RawPath != "" {
		moved.URL.RawPath = moveBelow(h.server.EscapedPath(), before.EscapedPath(), request.URL.RawPath)
	}
	return h.transport.RoundTrip(moved)
}

func moveBelow(directory, former, path string) string {
	return strings.TrimSuffix(directory, "/") + strings.TrimPrefix(path, strings.TrimSuffix(former, "/"))
}

// renewal is an attempt in flight.
type renewal struct {
	done chan struct{}
	err  error
}

var errClosed = errors.New("the cluster was disengaged")

// New returns a Credential without a kubeconfig.
func New(options Options) *Credential {
	ctx, cancel := context.WithCancel(context.Background())
	return &Credential{options: options, ctx: ctx, cancel: cancel, offered: make(chan struct{})}
}

// Offer replaces the kubeconfig with one that the daemon pushed, which is ignored unless it is newer than the current
// one: see supersedes.
func (c *Credential) Offer(k Kubeconfig) error {
	outcome, err := c.offer(k)
	if outcome == Renewed {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.notYet = time.Time{}
		close(c.offered)
		c.offered = make(chan struct{})
	}
	return err
}

func (c *Credential) offer(k Kubeconfig) (Outcome, error) {
	c.mu.Lock()
	isNew := c.supersedes(k)
	c.mu.Unlock()
	if !isNew {
		return Unchanged, nil
	}
	config, err := Parse(k.Content)
	if err != nil {
		return Failed, err
	}
	server, err := url.Parse(config.Host)
	if err != nil || server.Host == "" {
		return Failed, errors.New("kubeconfig refused: its server is not an absolute URL")
	}
	base, release, err := c.options.Pool.take(config)
	if err != nil {
		return Failed, err
	}
	transport, err := rest.HTTPWrappersForConfig(config, base)
	if err != nil {
		release()
		return Failed, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		release()
		return Failed, errClosed
	}
	if !c.supersedes(k) {
		release()
		return Unchanged, nil
	}
	if c.held != nil {
		c.held.release()
	}
	c.held = &held{from: k, server: server, transport: transport, release: release}
	return Renewed, nil
}

// supersedes reports whether a kubeconfig is newer than the current one: a response and a push may arrive in a
// different order than they were issued. It is called with the lock held.
func (c *Credential) supersedes(k Kubeconfig) bool {
	if c.held == nil {
		return true
	}
	issued := c.held.from.IssuedAt
	// If the current kubeconfig was issued in the future, the clocks do not agree, or one was set back since.
	return k.IssuedAt.After(issued) || issued.After(c.options.Now()) && !k.IssuedAt.Equal(issued)
}

// Close releases the transport and cancels attempts. Later requests fail.
func (c *Credential) Close() {
	c.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.held != nil {
		c.held.release()
	}
}

// Ensure requests a kubeconfig from the daemon unless one is held.
func (c *Credential) Ensure(ctx context.Context) error {
	_, err := c.current(ctx)
	return err
}

func (c *Credential) current(ctx context.Context) (*held, error) {
	c.mu.Lock()
	held, closed, offered := c.held, c.closed, c.offered
	c.mu.Unlock()
	switch {
	case closed:
		return nil, errClosed
	case held != nil:
		return held, nil
	}
	err := c.renew(ctx, offered)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, errClosed
	case c.held == nil:
		return nil, err
	}
	return c.held, nil
}

// RoundTrip sends the request, and retries it once with a newer credential after a 401.
func (c *Credential) RoundTrip(request *http.Request) (*http.Response, error) {
	used, err := c.current(request.Context())
	if err != nil {
		if request.Body != nil { // a RoundTripper closes it, also on errors
			_ = request.Body.Close()
		}
		return nil, err
	}
	if due := used.from.RefreshAfter; !due.IsZero() && c.options.Now().After(due) {
		c.startRenewal(minRenewalInterval)
	}
	response, err := used.send(request, c.options.Server)
	if err != nil || response.StatusCode != http.StatusUnauthorized {
		return response, err
	}
	newer := c.newerThan(request.Context(), used) // also for the next request
	if newer == nil {
		return response, nil
	}
	again, ok := rewound(request)
	if !ok {
		return response, nil
	}
	// The connection is reused only if the body was read.
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10))
	_ = response.Body.Close()
	return newer.send(again, c.options.Server)
}

// rewound returns a copy of the request for a retry, and false if its body cannot be sent again.
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

// newerThan returns a kubeconfig that replaced the rejected one, or nil if there is none. It requests one if necessary.
func (c *Credential) newerThan(ctx context.Context, refused *held) *held {
	c.mu.Lock()
	offered := c.offered
	c.mu.Unlock()
	if found := c.heldOtherThan(refused); found != nil {
		return found
	}
	attempt := c.startRenewal(minRenewalInterval)
	if attempt == nil {
		return c.heldOtherThan(refused) // an attempt may have ended after the first check
	}
	select {
	case <-attempt.done:
	case <-offered:
	case <-ctx.Done():
		return nil
	}
	return c.heldOtherThan(refused)
}

func (c *Credential) heldOtherThan(refused *held) *held {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == refused || c.closed {
		return nil
	}
	return c.held
}

// renew waits for an attempt to renew the credential, or for a kubeconfig that the daemon pushes.
func (c *Credential) renew(ctx context.Context, offered <-chan struct{}) error {
	attempt := c.startRenewal(0)
	select {
	case <-attempt.done:
		return attempt.err
	case <-offered:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// startRenewal starts an attempt in the background unless one is in flight. Called with a pause, it returns nil until
// the pause of the last attempt is over.
func (c *Credential) startRenewal(pause time.Duration) *renewal {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.renewal != nil {
		return c.renewal
	}
	now := c.options.Now()
	if pause > 0 && now.Before(c.notYet) {
		return nil
	}
	c.notYet = now.Add(pause)
	attempt := &renewal{done: make(chan struct{})}
	c.renewal = attempt
	go c.attempt(attempt)
	return attempt
}

func (c *Credential) attempt(attempt *renewal) {
	ctx, cancel := context.WithTimeout(c.ctx, issueTimeout)
	defer cancel()
	outcome := Failed
	issued, err := c.options.Issue(ctx)
	if err == nil {
		outcome, err = c.offer(issued)
	}
	if c.ctx.Err() != nil {
		err = errClosed
	} else {
		c.options.Attempted(outcome, err)
	}
	attempt.err = err
	c.mu.Lock()
	c.renewal = nil
	c.mu.Unlock()
	close(attempt.done)
}
