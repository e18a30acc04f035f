package mapping

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// defaultHedgeAfter is how long one member may take before the request is sent to another one as well.
	defaultHedgeAfter = 100 * time.Millisecond
	// answerWithin is the time limit for all members together. The mapper holds its lock for that time.
	answerWithin = 15 * time.Second
	// maxAsked is the maximum number of members that a request is sent to.
	maxAsked = 8
	// maxDocument is the maximum size of a discovery document.
	maxDocument = 64 << 20
)

var errNoMember = errors.New("no cluster of this API server is engaged, so its discovery documents cannot be read")

type member struct {
	lifetime  context.Context // of the cluster; its requests end with it
	base      *url.URL
	transport http.RoundTripper
}

// members sends a request to one member after another until one gives a conclusive answer.
type members struct {
	hedgeAfter time.Duration

	mu   sync.Mutex
	list []*member // the one that answered last is at the front
}

func (m *members) add(added *member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = append(m.list, added)
}

// remove removes a member, and returns how many remain.
func (m *members) remove(removed *member) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = slices.DeleteFunc(m.list, func(each *member) bool { return each == removed })
	return len(m.list)
}

// candidates returns the member that answered last, and then the newest ones.
func (m *members) candidates() []*member {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.list) == 0 {
		return nil
	}
	found := []*member{m.list[0]}
	for i := len(m.list) - 1; i > 0 && len(found) < maxAsked; i-- {
		found = append(found, m.list[i])
	}
	return found
}

func (m *members) prefer(answered *member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.list, answered); i > 0 {
		m.list[0], m.list[i] = m.list[i], m.list[0]
	}
}

type answer struct {
	from     *member
	response *http.Response
	err      error
}

// The ranks of answers, by how conclusive they are.
const (
	failed = iota
	refused
	notFound
	found
)

func (a answer) rank() int {
	switch {
	case a.err != nil:
		return failed
	case a.response.StatusCode == http.StatusOK:
		return found
	case a.response.StatusCode == http.StatusNotFound:
		return notFound
	default:
		return refused
	}
}

// RoundTrip returns the first document that a member returns. A 404 of one member may mean that its project was deleted,
// and is returned only if a second member confirms it.
func (m *members) RoundTrip(request *http.Request) (*http.Response, error) {
	candidates := m.candidates()
	if len(candidates) == 0 {
		return nil, errNoMember
	}
	ctx, cancel := context.WithTimeout(request.Context(), answerWithin)
	defer cancel() // of the requests whose answers are not needed
	answers := make(chan answer, len(candidates))
	asked, open := 0, 0
	ask := func() {
		go func(to *member) { answers <- to.answer(ctx, request) }(candidates[asked])
		asked++
		open++
	}
	ask()
	hedge := time.NewTicker(m.hedgeAfter)
	defer hedge.Stop()
	best := answer{err: errNoMember}
	for open > 0 {
		select {
		case got := <-answers:
			open--
			rank := got.rank()
			if rank == found {
				m.prefer(got.from)
			}
			if rank == found || rank == notFound && best.rank() == notFound {
				return got.response, nil
			}
			if rank >= best.rank() {
				best = got
			}
			if asked < len(candidates) && ctx.Err() == nil {
				ask()
			}
		case <-hedge.C:
			if asked < len(candidates) {
				ask()
			}
		}
	}
	return best.response, best.err
}

func (m *member) answer(ctx context.Context, request *http.Request) answer {
	sent := request.Clone(ctx)
	sent.URL.Scheme, sent.URL.Host = m.base.Scheme, m.base.Host
	sent.URL.Path = m.base.Path + "/" + strings.TrimPrefix(request.URL.Path, "/")
	sent.Host = ""
	response, err := read(m.lifetime, m.transport, sent)
	return answer{from: m, response: response, err: err}
}

// read reads a whole document, so that a server that stops in the middle counts as one that did not answer. A REST mapper
// gives its requests no context; they end with the lifetime of the cluster that they are for.
func read(lifetime context.Context, transport http.RoundTripper, request *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(request.Context(), answerWithin)
	defer cancel()
	defer context.AfterFunc(lifetime, cancel)()
	response, err := transport.RoundTrip(request.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxDocument))
	if err != nil {
		return nil, err
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, nil
}

// alone reads the documents of one cluster.
type alone struct {
	lifetime  context.Context
	transport http.RoundTripper
}

func (a alone) RoundTrip(request *http.Request) (*http.Response, error) {
	return read(a.lifetime, a.transport, request)
}
