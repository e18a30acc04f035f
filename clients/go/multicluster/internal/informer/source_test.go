package informer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversionscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
)

// source is an API server with ConfigMaps and their history.
type source struct {
	watchLists bool   // whether it supports them
	mediaType  string // of its responses
	taken      bool   // whether its clients are from Client
	partial    bool   // whether it serves metadata
	timeout    time.Duration
	most       int    // bytes that a client gets at once from a watch
	sent       func() // called under the lock after the list that a watch begins with

	mu      sync.Mutex
	version int
	oldest  int // the oldest version that a watch can begin with
	objects map[string]*corev1.ConfigMap
	history []change
	streams map[*connection]struct{}
	outage  error
	opened  int // watches without a list
}

func (s *source) watched() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened
}

type change struct {
	version int
	event   watch.Event
}

func newSource(watchLists bool) *source {
	return &source{
		watchLists: watchLists, mediaType: runtime.ContentTypeJSON, taken: true, most: 1000, version: 1,
		objects: map[string]*corev1.ConfigMap{}, streams: map[*connection]struct{}{},
	}
}

func (s *source) listerWatcher() toolscache.ListerWatcher {
	client := &http.Client{Transport: s, Timeout: s.timeout}
	if s.taken {
		client = Client(client)
	}
	config := &rest.Config{Host: "http://source", APIPath: "/api", QPS: -1, ContentConfig: rest.ContentConfig{
		GroupVersion: &corev1.SchemeGroupVersion, ContentType: s.mediaType, NegotiatedSerializer: scheme.Codecs.WithoutConversion(),
	}}
	configMaps, err := rest.RESTClientForConfigAndClient(config, client)
	if err != nil {
		panic(err)
	}
	return toolscache.NewListWatchFromClient(configMaps, "configmaps", "default", fields.Everything())
}

func (s *source) RoundTrip(request *http.Request) (*http.Response, error) {
	query := request.URL.Query()
	s.mu.Lock()
	defer s.mu.Unlock()
	var body io.ReadCloser
	var status *apierrors.StatusError
	switch {
	case errors.As(s.outage, &status):
	case s.outage != nil:
		return nil, s.outage
	case query.Get("watch") == "":
		body = io.NopCloser(bytes.NewReader(s.encode(s.list())))
	default:
		body, status = s.watch(request.Context(), query)
	}
	code := http.StatusOK
	if status != nil {
		code, body = int(status.ErrStatus.Code), io.NopCloser(bytes.NewReader(s.encode(&status.ErrStatus)))
	}
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {s.mediaType}}, Body: body, Request: request}, nil
}

func (s *source) list() runtime.Object {
	list := &corev1.ConfigMapList{ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}}
	for _, each := range s.objects {
		list.Items = append(list.Items, *each)
	}
	return list
}

func (s *source) watch(ctx context.Context, query url.Values) (io.ReadCloser, *apierrors.StatusError) {
	stream := newConnection(s.most)
	if query.Has("sendInitialEvents") {
		if !s.watchLists {
			return nil, apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("ListOptions").GroupKind(), "", nil)
		}
		for _, each := range s.objects {
			stream.send(s.event(watch.Added, each))
		}
		stream.send(s.event(watch.Bookmark, s.bookmark(map[string]string{metav1.InitialEventsAnnotationKey: "true"})))
	} else {
		s.opened++
		from, err := strconv.Atoi(query.Get("resourceVersion"))
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		if from < s.oldest {
			return nil, apierrors.NewResourceExpired("too old resource version")
		}
		for _, each := range s.history {
			if each.version > from {
				stream.send(s.event(each.event.Type, each.event.Object))
			}
		}
	}
	s.streams[stream] = struct{}{}
	if s.sent != nil && query.Has("sendInitialEvents") {
		s.sent()
	}
	context.AfterFunc(ctx, stream.end)
	return stream, nil
}

func (s *source) serializer() runtime.SerializerInfo {
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), s.mediaType)
	if !ok {
		panic(s.mediaType)
	}
	return info
}

func (s *source) encode(obj runtime.Object) []byte {
	encoder := scheme.Codecs.EncoderForVersion(s.serializer().Serializer, corev1.SchemeGroupVersion)
	if s.partial {
		obj, encoder = partial(obj), metainternalversionscheme.Codecs.EncoderForVersion(s.serializer().Serializer, metav1.SchemeGroupVersion)
	}
	data, err := runtime.Encode(encoder, obj)
	if err != nil {
		panic(err)
	}
	return data
}

func partial(obj runtime.Object) runtime.Object {
	switch of := obj.(type) {
	case *corev1.ConfigMap:
		return &metav1.PartialObjectMetadata{ObjectMeta: of.ObjectMeta}
	case *corev1.ConfigMapList:
		list := &metav1.PartialObjectMetadataList{ListMeta: of.ListMeta}
		for _, each := range of.Items {
			list.Items = append(list.Items, metav1.PartialObjectMetadata{ObjectMeta: each.ObjectMeta})
		}
		return list
	default:
		return obj
	}
}

// event returns the frame of an event.
func (s *source) event(happened watch.EventType, obj runtime.Object) []byte {
	var frame bytes.Buffer
	of := s.serializer().StreamSerializer
	event := &metav1.WatchEvent{Type: string(happened), Object: runtime.RawExtension{Raw: s.encode(obj)}}
	encoded, err := runtime.Encode(scheme.Codecs.EncoderForVersion(of.Serializer, corev1.SchemeGroupVersion), event)
	if err == nil {
		_, err = of.NewFrameWriter(&frame).Write(encoded)
	}
	if err != nil {
		panic(err)
	}
	return frame.Bytes()
}

func (s *source) bookmark(annotations map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{ResourceVersion: strconv.Itoa(s.version), Annotations: annotations}}
}

// put creates or updates an object.
func (s *source) put(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(name)
}

func (s *source) change(name string) {
	s.version++
	happened := watch.Modified
	if _, ok := s.objects[name]; !ok {
		happened = watch.Added
	}
	s.objects[name] = &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, ResourceVersion: strconv.Itoa(s.version)},
		Data:       map[string]string{"parity": strconv.Itoa(s.version % 2)},
	}
	s.publish(happened, s.objects[name])
}

func (s *source) remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.objects[name]
	if !ok {
		return
	}
	s.version++
	delete(s.objects, name)
	old = old.DeepCopy()
	old.ResourceVersion = strconv.Itoa(s.version)
	s.publish(watch.Deleted, old)
}

func (s *source) publish(happened watch.EventType, obj *corev1.ConfigMap) {
	s.history = append(s.history, change{s.version, watch.Event{Type: happened, Object: obj}})
	for stream := range s.streams {
		stream.send(s.event(happened, obj))
	}
}

func (s *source) sendBookmark() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for stream := range s.streams {
		stream.send(s.event(watch.Bookmark, s.bookmark(nil)))
	}
}

// disconnect ends all watches, with an error event if there is an error.
func (s *source) disconnect(err *apierrors.StatusError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for stream := range s.streams {
		if err != nil {
			stream.send(s.event(watch.Error, &err.ErrStatus))
		}
		stream.end()
	}
	clear(s.streams)
}

// compact forgets the history.
func (s *source) compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history, s.oldest = nil, s.version
}

func (s *source) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outage = err
}

// connection is the body of the response to a watch, which a client gets in parts.
type connection struct {
	most  int // bytes in a part
	mu    sync.Mutex
	more  *sync.Cond
	sent  []byte
	ended bool
}

func newConnection(most int) *connection {
	c := &connection{most: most}
	c.more = sync.NewCond(&c.mu)
	return c
}

func (c *connection) send(frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.sent = append(c.sent, frame...)
		c.more.Broadcast()
	}
}

func (c *connection) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.more.Broadcast()
}

func (c *connection) Read(to []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.sent) == 0 {
		if c.ended {
			return 0, io.EOF
		}
		c.more.Wait()
	}
	n := copy(to[:min(len(to), 1+rand.IntN(c.most))], c.sent)
	c.sent = c.sent[n:]
	return n, nil
}

func (c *connection) Close() error {
	c.end()
	return nil
}

func describe(obj any) string {
	if unknown, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
		return fmt.Sprintf("unknown %s %s", unknown.Key, describe(unknown.Obj))
	}
	found := obj.(*corev1.ConfigMap)
	return fmt.Sprintf("%s@%s%v", found.Name, found.ResourceVersion, found.Annotations)
}
