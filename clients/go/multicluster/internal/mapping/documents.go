// Package mapping shares REST mappers between clusters that serve the same kinds.
//
// A REST mapper takes about 300 KiB. API servers send a hash of each discovery document as its ETag, so a conditional
// request shows whether a cluster serves a cached document. Clusters with the same document share its mapper, and no
// cluster waits for the response of another one.
package mapping

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"weak"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/restmapper"
)

const (
	// requestTimeout is the timeout of a request. A mapper gets no context, and holds the locks of its cluster's cache
	// during the request.
	requestTimeout = 15 * time.Second
	// maxDocument is the maximum size of a discovery document.
	maxDocument = 64 << 20
	// minETag is the minimum length of an ETag that is used for conditional requests: a hash of the content, like that of
	// kube-apiserver, has the same meaning in each cluster of a server.
	minETag = 64
)

// errNotAggregated is returned for servers without aggregated discovery, such as those before Kubernetes 1.30.
var errNotAggregated = errors.New("the server does not serve aggregated discovery documents")

// document is an aggregated discovery document: the kinds of the core group, or of all other groups.
type document struct {
	etag   string
	mapper meta.RESTMapper
}

// Documents caches the discovery documents of all clusters, each once. A document is dropped when no mapper uses it.
type Documents struct {
	Timeout time.Duration // timeout of a request; zero means requestTimeout. Set only by tests.

	mu    sync.Mutex
	known map[[sha256.Size]byte]weak.Pointer[document]
	last  map[string]weak.Pointer[document] // the last document of each API server and path
}

// server is the API server of a cluster.
type server struct {
	lifetime  context.Context // context of the cluster, and of its requests
	base      *url.URL
	transport http.RoundTripper
}

// read returns the server's document at a path. If it is unchanged, or the same as that of another cluster, the result
// is the cached document.
func (d *Documents) read(from server, path string, before *document) (*document, error) {
	// ETags of one API server are not used for another one, which could send them with different content.
	place := from.base.Scheme + "://" + from.base.Host + path
	asked := before
	if asked == nil {
		d.mu.Lock()
		asked = d.last[place].Value()
		d.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(from.lifetime, cmp.Or(d.Timeout, requestTimeout))
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from.base.JoinPath(path).String(), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", discovery.AcceptV2+","+discovery.AcceptV1)
	if asked != nil && len(asked.etag) >= minETag {
		request.Header.Set("If-None-Match", asked.etag)
	}
	response, err := from.transport.RoundTrip(request)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", request.URL, err)
	}
	defer func() { _ = response.Body.Close() }()
	switch {
	case response.StatusCode == http.StatusNotModified && asked != nil:
		return asked, nil
	case response.StatusCode == http.StatusNotFound || response.StatusCode == http.StatusNotAcceptable:
		return nil, errNotAggregated
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("read %s: %s", request.URL, response.Status)
	case !strings.Contains(response.Header.Get("Content-Type"), "as=APIGroupDiscoveryList"):
		return nil, errNotAggregated
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxDocument))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", request.URL, err)
	}
	found, err := d.document(body, response.Header.Get("ETag"))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", request.URL, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last[place] = weak.Make(found)
	return found, nil
}

// document returns the document with this content and ETag, from the cache if possible.
func (d *Documents) document(content []byte, etag string) (*document, error) {
	hash := sha256.Sum256(slices.Concat([]byte(etag), []byte{0}, content))
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil {
		d.known, d.last = map[[sha256.Size]byte]weak.Pointer[document]{}, map[string]weak.Pointer[document]{}
	}
	if found := d.known[hash].Value(); found != nil {
		return found, nil
	}
	for key, cached := range d.known {
		if cached.Value() == nil {
			delete(d.known, key)
		}
	}
	mapper, err := mapperOf(content)
	if err != nil {
		return nil, err
	}
	found := &document{etag: etag, mapper: mapper}
	d.known[hash] = weak.Make(found)
	return found, nil
}

func mapperOf(content []byte) (meta.RESTMapper, error) {
	var list apidiscovery.APIGroupDiscoveryList
	if err := json.Unmarshal(content, &list); err != nil {
		return nil, err
	}
	groups, resources, _ := discovery.SplitGroupsAndResources(list)
	found := make([]*restmapper.APIGroupResources, len(groups.Groups))
	for i, group := range groups.Groups {
		found[i] = &restmapper.APIGroupResources{Group: group, VersionedResources: map[string][]metav1.APIResource{}}
		for _, version := range group.Versions {
			if list := resources[schema.GroupVersion{Group: group.Name, Version: version.Version}]; list != nil {
				found[i].VersionedResources[version.Version] = list.APIResources
			}
		}
	}
	return restmapper.NewDiscoveryRESTMapper(found), nil
}
