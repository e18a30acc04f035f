// Package permit sends requests only while they may be sent.
package permit

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptrace"
)

// RoundTrip sends a request, unless it is refused when there is a connection for it: opening one can take as long as its
// timeout, and another project may have the address by then.
func RoundTrip(refused func() error, base http.RoundTripper, request *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(request.Context())
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		refusal := refused()
		if refusal == nil {
			return
		}
		cancel(refusal) // HTTP/2 looks for it before it writes
		if secured, ok := got.Conn.(*tls.Conn); !ok || secured.ConnectionState().NegotiatedProtocol != "h2" {
			_ = got.Conn.Close() // HTTP/1 writes at once, on a connection that no other request has
		}
	}})
	response, err := base.RoundTrip(request.WithContext(traced))
	if err != nil {
		defer cancel(nil)
		if refusal := refused(); refusal != nil && ctx.Err() != nil {
			err = refusal
		}
		return nil, err
	}
	body := &endingBody{ReadCloser: response.Body, end: cancel}
	response.Body = body
	if writer, ok := body.ReadCloser.(io.Writer); ok { // after 101 Switching Protocols
		response.Body = struct {
			*endingBody
			io.Writer
		}{body, writer}
	}
	return response, nil
}

// endingBody ends the context of its request, which the context of the caller would otherwise keep.
type endingBody struct {
	io.ReadCloser
	end context.CancelCauseFunc
}

func (b *endingBody) Close() error {
	defer b.end(nil)
	return b.ReadCloser.Close()
}
