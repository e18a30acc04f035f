package multicluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// engagedTransport is the transport of all clients of a cluster. It sends nothing once the engagement has ended: the name,
// and in some sources the address, may be those of another project by then. And it follows no redirect: net/http would
// send the request again to whichever server the cluster names, and the transport would add the credential to it.
type engagedTransport struct {
	base http.RoundTripper
	// owned ends with the engagement, with a *Disengaged as cause.
	owned context.Context
}

func (t *engagedTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	var ended *Disengaged
	// Requests may finish while the process ends.
	if t.owned.Err() != nil && errors.As(context.Cause(t.owned), &ended) {
		if request.Body != nil { // a RoundTripper closes it, also on errors
			_ = request.Body.Close()
		}
		return nil, ended
	}
	response, err := t.base.RoundTrip(request)
	if err != nil || !isRedirect(response.StatusCode) {
		return response, err
	}
	_ = response.Body.Close()
	return nil, fmt.Errorf("redirect refused: the cluster answered %s %s with %s", request.Method, request.URL.Path, response.Status)
}

// WrappedRoundTripper lets client-go find the transport below.
func (t *engagedTransport) WrappedRoundTripper() http.RoundTripper { return t.base }

func isRedirect(status int) bool {
	return status >= http.StatusMultipleChoices && status < http.StatusBadRequest && status != http.StatusNotModified
}
