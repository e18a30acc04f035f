package multicluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"go.miloapis.com/discovery/internal/permit"
)

// engagedTransport is the transport of all clients of a cluster. It sends no requests once the engagement has ended:
// another project may have the name, and in some sources the address, by then. And it returns an error for a redirect:
// net/http would follow it to any server, and the transport would add the credential to that request.
type engagedTransport struct {
	base http.RoundTripper
	// owned is canceled at the end of the engagement, with a *Disengaged as cause.
	owned context.Context
}

func (t *engagedTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	if ended := t.ended(); ended != nil {
		if request.Body != nil { // a RoundTripper has to close the request body, even on errors
			_ = request.Body.Close()
		}
		return nil, ended
	}
	response, err := permit.RoundTrip(t.ended, t.base, request)
	if err != nil || !isRedirect(response.StatusCode) {
		return response, err
	}
	_ = response.Body.Close()
	return nil, fmt.Errorf("redirect refused: the cluster responded to %s %s with %s", request.Method, request.URL.Path, response.Status)
}

// ended returns why the engagement ended, or nil. If the process exits, requests may finish.
func (t *engagedTransport) ended() error {
	var ended *Disengaged
	if errors.As(context.Cause(t.owned), &ended) {
		return ended
	}
	return nil
}

// WrappedRoundTripper returns the wrapped transport, for client-go.
func (t *engagedTransport) WrappedRoundTripper() http.RoundTripper { return t.base }

func isRedirect(status int) bool {
	return status >= http.StatusMultipleChoices && status < http.StatusBadRequest && status != http.StatusNotModified
}
