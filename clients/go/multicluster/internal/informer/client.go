package informer

import (
	"context"
	"io"
	"mime"
	"net/http"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// Client returns a copy of from for the cache of informers, with a transport that hands them the responses to their watches.
func Client(from *http.Client) *http.Client {
	client := *from
	if client.Transport == nil {
		client.Transport = http.DefaultTransport
	}
	client.Transport = transport{client.Transport}
	return &client
}

type transport struct{ http.RoundTripper }

// taken is a response to a watch that a transport has taken. The client gets an empty one.
type taken struct {
	body       io.ReadCloser // nil if none was taken
	mediaType  string
	parameters map[string]string
	frames     split
}

type takenKey struct{}

func (t transport) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := t.RoundTripper.RoundTrip(request)
	to, ok := request.Context().Value(takenKey{}).(*taken)
	// With a client that limits the time of its requests, the body ends as soon as the client has closed the empty one.
	if _, limited := request.Context().Deadline(); !ok || limited || err != nil || response.StatusCode != http.StatusOK {
		return response, err
	}
	mediaType, parameters, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	frames := framesOf(mediaType)
	if frames == nil {
		return response, nil
	}
	*to = taken{response.Body, mediaType, parameters, frames}
	empty := *response
	empty.Body = http.NoBody
	return &empty, nil
}

// WrappedRoundTripper lets client-go find the transport below.
func (t transport) WrappedRoundTripper() http.RoundTripper { return t.RoundTripper }

// open opens a watch. It ends with the informer.
func (i *informer[D]) open(options metav1.ListOptions) (*stream, error) {
	var to taken
	theirs, err := i.lw.WatchWithContext(context.WithValue(i.logged, takenKey{}, &to), options)
	if err != nil {
		return nil, err
	}
	return newStream(theirs, to, i.negotiator)
}

// typed has negotiators by scheme, which informers of all clusters share.
var typed sync.Map

var (
	ofUnstructured = negotiator(dynamic.ConfigFor(&rest.Config{}).NegotiatedSerializer)
	ofMetadata     = negotiator(metadata.ConfigFor(&rest.Config{}).NegotiatedSerializer)
)

func negotiator(of runtime.NegotiatedSerializer) runtime.ClientNegotiator {
	return runtime.NewClientNegotiator(of, schema.GroupVersion{})
}

// negotiatorFor returns what the client decodes with that controller-runtime's cache has for obj.
func negotiatorFor(obj runtime.Object, scheme *runtime.Scheme) runtime.ClientNegotiator {
	switch obj.(type) {
	case runtime.Unstructured:
		return ofUnstructured
	case *metav1.PartialObjectMetadata:
		return ofMetadata
	}
	found, ok := typed.Load(scheme)
	if !ok {
		found, _ = typed.LoadOrStore(scheme, negotiator(serializer.NewCodecFactory(scheme).WithoutConversion()))
	}
	return found.(runtime.ClientNegotiator)
}
