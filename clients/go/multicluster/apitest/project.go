package apitest

import (
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes/scheme"
)

// Project is the control plane of one project. Its methods are safe for concurrent use.
type Project struct {
	mu        sync.Mutex
	catalog   *catalog
	now       uint64
	objects   map[schema.GroupVersionResource]map[types.NamespacedName]*unstructured.Unstructured
	watches   map[*watch]struct{}
	hanging   chan struct{} // closed when held requests continue; nil if requests are not held
	answers   map[string]http.HandlerFunc
	tokens    map[string]bool // accepted bearer tokens; nil means that no token is required
	counted   map[string]int
	changes   []change
	forgotten uint64   // the resourceVersion of the last change that was dropped from changes
	answered  []string // tokens of the last two requests that SetTokens did not reject
}

type watch struct {
	resource  schema.GroupVersionResource
	namespace string
	events    chan []byte
	ended     chan struct{}
}

// change is a past event, for watches that begin at an earlier resourceVersion.
type change struct {
	version   uint64
	resource  schema.GroupVersionResource
	namespace string
	event     []byte
}

// rememberedChanges is the number of past events that a project keeps. Watches that begin earlier fail with
// 410 Gone.
const rememberedChanges = 1000

func (w *watch) follows(c change) bool {
	return w.resource == c.resource && (w.namespace == "" || w.namespace == c.namespace)
}

func newProject(catalog *catalog) *Project {
	p := &Project{
		catalog: catalog,
		objects: map[schema.GroupVersionResource]map[types.NamespacedName]*unstructured.Unstructured{},
		watches: map[*watch]struct{}{}, answers: map[string]http.HandlerFunc{}, counted: map[string]int{},
	}
	for _, name := range []string{"default", "kube-system"} {
		namespace := &unstructured.Unstructured{Object: map[string]any{}}
		namespace.SetGroupVersionKind(schema.GroupVersionKind{Version: "v1", Kind: "Namespace"})
		namespace.SetName(name)
		p.store(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, "ADDED", namespace)
	}
	return p
}

// SetHanging sets whether requests hang. With false, requests that hang continue.
func (p *Project) SetHanging(hanging bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case hanging && p.hanging == nil:
		p.hanging = make(chan struct{})
	case !hanging && p.hanging != nil:
		close(p.hanging)
		p.hanging = nil
	}
}

// Forbid makes the server reject requests for a resource, such as "configmaps", with 403 Forbidden.
func (p *Project) Forbid(resource string) {
	p.Answer(resource, func(w http.ResponseWriter, _ *http.Request) {
		p.count("forbidden", resource)
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, resource+" is forbidden here")
	})
}

// Serve makes the project serve a kind as a resource, like a CustomResourceDefinition.
func (p *Project) Serve(kind schema.GroupVersionKind, resource string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.catalog = p.catalog.changed(func(kinds map[schema.GroupVersionResource]schema.GroupVersionKind) {
		maps.DeleteFunc(kinds, func(_ schema.GroupVersionResource, each schema.GroupVersionKind) bool { return each == kind })
		kinds[kind.GroupVersion().WithResource(resource)] = kind
	})
}

// Silence makes requests for a resource, such as "configmaps", hang.
func (p *Project) Silence(resource string) {
	p.Answer(resource, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
}

// Answer sets the handler of the requests for a resource, such as "configmaps". With nil, the server handles them
// again.
func (p *Project) Answer(resource string, handler http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers[resource] = handler
}

// SetTokens makes the server reject requests without one of these bearer tokens. Open watches stay open.
func (p *Project) SetTokens(tokens ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tokens = map[string]bool{}
	for _, token := range tokens {
		p.tokens[token] = true
	}
}

// Count returns the number of requests of a kind: a verb and a resource, as in "watch configmaps" (for writes, the HTTP
// method in lower case); "answer" and a resource for requests that a handler of Answer, Forbid or Silence received;
// "forbidden" and a resource for those that Forbid rejected; "discover" or "send" and a path for requests of a
// discovery document, or responses with it; or "refused" for requests without an accepted token.
func (p *Project) Count(what string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counted[what]
}

// LastToken returns the bearer token of the last request that SetTokens did not reject.
func (p *Project) LastToken() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.answered) == 0 {
		return ""
	}
	return p.answered[len(p.answered)-1]
}

// Watches returns the number of open watches.
func (p *Project) Watches() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.watches)
}

// EndWatches closes all watches, as during a restart of a server.
func (p *Project) EndWatches() { p.end() }

func (p *Project) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for each := range p.watches {
		close(each.ended)
		delete(p.watches, each)
	}
}

func (p *Project) serve(w http.ResponseWriter, r *http.Request, path string) {
	p.mu.Lock()
	held := p.hanging
	p.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
			return
		}
	}
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	p.mu.Lock()
	if p.tokens != nil && !p.tokens[token] {
		p.counted["refused"]++
		p.mu.Unlock()
		refuse(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized, "the token is not accepted")
		return
	}
	p.answered = append(p.answered[max(0, len(p.answered)-1):], token)
	served := p.catalog
	p.mu.Unlock()
	path = strings.TrimSuffix(path, "/")
	if found, ok := served.documents[path]; ok {
		p.discover(w, r, path, found)
		return
	}
	resource, name, ok := parse(path)
	kind, known := served.kinds[resource]
	if !ok || !known {
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, "no such path")
		return
	}
	p.mu.Lock()
	answer := p.answers[resource.Resource]
	p.mu.Unlock()
	if answer != nil {
		p.count("answer", resource.Resource)
		answer(w, r)
		return
	}
	switch {
	case r.Method == http.MethodGet && name.Name == "" && r.URL.Query().Get("watch") != "":
		p.count("watch", resource.Resource)
		p.watch(w, r, resource, kind, name.Namespace)
	case r.Method == http.MethodGet && name.Name == "":
		p.count("list", resource.Resource)
		p.list(w, resource, kind, name.Namespace)
	case r.Method == http.MethodGet:
		p.count("get", resource.Resource)
		p.reply(w, resource, name, p.Get(resource, name))
	case r.Method == http.MethodDelete:
		p.count("delete", resource.Resource)
		found := p.Get(resource, name)
		p.Delete(resource, name)
		p.reply(w, resource, name, found)
	default:
		p.count(strings.ToLower(r.Method), resource.Resource)
		p.write(w, r, resource, kind, name)
	}
}

// discover sends a discovery document. Like kube-apiserver, it uses a hash as the ETag.
func (p *Project) discover(w http.ResponseWriter, r *http.Request, path string, document []byte) {
	p.count("discover", path)
	etag := fmt.Sprintf("\"%X\"", sha512.Sum512(document))
	w.Header().Set("ETag", etag)
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	p.count("send", path)
	w.Header().Set("Content-Type", "application/json")
	if path == "/api" || path == "/apis" {
		w.Header().Set("Content-Type", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
	}
	_, _ = w.Write(document)
}

func (p *Project) count(verb, what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counted[verb+" "+what]++
}

// parse splits a path /api/VERSION/... or /apis/GROUP/VERSION/... into the resource and the name of the object.
func parse(path string) (schema.GroupVersionResource, types.NamespacedName, bool) {
	var resource schema.GroupVersionResource
	var name types.NamespacedName
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		resource.Version, parts = parts[1], parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		resource.Group, resource.Version, parts = parts[1], parts[2], parts[3:]
	default:
		return resource, name, false
	}
	if parts[0] == "namespaces" && len(parts) > 2 && parts[2] != "status" {
		name.Namespace, parts = parts[1], parts[2:]
	}
	resource.Resource = parts[0]
	if len(parts) > 1 {
		name.Name = parts[1]
	}
	return resource, name, true
}

func (p *Project) reply(w http.ResponseWriter, resource schema.GroupVersionResource, name types.NamespacedName, found *unstructured.Unstructured) {
	if found == nil {
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("%s %q not found", resource.Resource, name.Name))
		return
	}
	answer(w, found.Object)
}

func (p *Project) list(w http.ResponseWriter, resource schema.GroupVersionResource, kind schema.GroupVersionKind, namespace string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	items := []any{}
	for name, each := range p.objects[resource] {
		if namespace == "" || name.Namespace == namespace {
			items = append(items, each.Object)
		}
	}
	answer(w, map[string]any{
		"kind": kind.Kind + "List", "apiVersion": kind.GroupVersion().String(),
		"metadata": map[string]any{"resourceVersion": version(p.now)}, "items": items,
	})
}

func (p *Project) watch(w http.ResponseWriter, r *http.Request, resource schema.GroupVersionResource, kind schema.GroupVersionKind, namespace string) {
	opened := &watch{resource: resource, namespace: namespace, events: make(chan []byte, 1024), ended: make(chan struct{})}
	initial := [][]byte{}
	p.mu.Lock()
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for name, each := range p.objects[resource] {
			if namespace == "" || name.Namespace == namespace {
				initial = append(initial, event("ADDED", each))
			}
		}
		bookmark := &unstructured.Unstructured{Object: map[string]any{}}
		bookmark.SetGroupVersionKind(kind)
		bookmark.SetResourceVersion(version(p.now))
		bookmark.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		initial = append(initial, event("BOOKMARK", bookmark))
	} else {
		from, err := strconv.ParseUint(r.URL.Query().Get("resourceVersion"), 10, 64)
		if err != nil || from < p.forgotten {
			p.mu.Unlock()
			refuse(w, http.StatusGone, metav1.StatusReasonExpired, "too old resource version")
			return
		}
		for _, each := range p.changes {
			if each.version > from && opened.follows(each) {
				initial = append(initial, each.event)
			}
		}
	}
	p.watches[opened] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.watches, opened)
		p.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	flush := http.NewResponseController(w).Flush
	for _, each := range initial {
		_, _ = w.Write(each)
	}
	_ = flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-opened.ended:
			return
		case each := <-opened.events:
			_, _ = w.Write(each)
			_ = flush()
		}
	}
}

func event(kind string, object *unstructured.Unstructured) []byte {
	content, err := json.Marshal(map[string]any{"type": kind, "object": object.Object})
	if err != nil {
		panic(err) // cannot happen: the object was decoded from JSON
	}
	return append(content, '\n')
}

func (p *Project) write(w http.ResponseWriter, r *http.Request, resource schema.GroupVersionResource, kind schema.GroupVersionKind, name types.NamespacedName) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	var written *unstructured.Unstructured
	before := p.Get(resource, name)
	if r.Method == http.MethodPatch {
		written, err = patched(before, body)
	} else {
		written, err = decoded(body, r.Header.Get("Content-Type"))
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	written.SetGroupVersionKind(kind)
	if name.Namespace != "" {
		written.SetNamespace(name.Namespace)
	}
	name.Name = written.GetName()
	before = p.Get(resource, name)
	switch {
	case r.Method == http.MethodPost && before != nil:
		refuse(w, http.StatusConflict, metav1.StatusReasonAlreadyExists, fmt.Sprintf("%s %q already exists", resource.Resource, name.Name))
		return
	case r.Method != http.MethodPost && before == nil:
		p.reply(w, resource, name, nil)
		return
	case before != nil && written.GetResourceVersion() != "" && written.GetResourceVersion() != before.GetResourceVersion():
		refuse(w, http.StatusConflict, metav1.StatusReasonConflict, fmt.Sprintf("Operation cannot be fulfilled on %s %q: the object has been "+
			"modified; please apply your changes to the latest version and try again", resource.Resource, name.Name))
		return
	}
	if before != nil && strings.HasSuffix(r.URL.Path, "/status") {
		status := written.Object["status"]
		written = before.DeepCopy()
		written.Object["status"] = status
	} else if before != nil && before.Object["status"] != nil {
		written.Object["status"] = before.Object["status"]
	}
	answer(w, p.Apply(resource, written).Object)
}

func patched(before *unstructured.Unstructured, patch []byte) (*unstructured.Unstructured, error) {
	if before == nil {
		return nil, fmt.Errorf("the object to patch does not exist")
	}
	content, err := before.MarshalJSON()
	if err != nil {
		return nil, err
	}
	if content, err = jsonpatch.MergePatch(content, patch); err != nil {
		return nil, err
	}
	return decoded(content, "application/json")
}

func decoded(body []byte, contentType string) (*unstructured.Unstructured, error) {
	found := &unstructured.Unstructured{Object: map[string]any{}}
	if !strings.Contains(contentType, "protobuf") {
		return found, json.Unmarshal(body, &found.Object)
	}
	object, err := runtime.Decode(scheme.Codecs.UniversalDeserializer(), body)
	if err != nil {
		return nil, err
	}
	found.Object, err = runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	return found, err
}

// Get returns an object, or nil.
func (p *Project) Get(resource schema.GroupVersionResource, name types.NamespacedName) *unstructured.Unstructured {
	p.mu.Lock()
	defer p.mu.Unlock()
	if found, ok := p.objects[resource][name]; ok {
		return found.DeepCopy()
	}
	return nil
}

// Apply creates or replaces an object.
func (p *Project) Apply(resource schema.GroupVersionResource, object *unstructured.Unstructured) *unstructured.Unstructured {
	p.mu.Lock()
	defer p.mu.Unlock()
	object = object.DeepCopy()
	before, ok := p.objects[resource][types.NamespacedName{Namespace: object.GetNamespace(), Name: object.GetName()}]
	if !ok {
		return p.store(resource, "ADDED", object)
	}
	object.SetUID(before.GetUID())
	object.SetCreationTimestamp(before.GetCreationTimestamp())
	if before.GetDeletionTimestamp() != nil {
		object.SetDeletionTimestamp(before.GetDeletionTimestamp())
		if len(object.GetFinalizers()) == 0 {
			return p.store(resource, "DELETED", object)
		}
	}
	return p.store(resource, "MODIFIED", object)
}

// Delete deletes an object. If it has finalizers, Delete only sets its deletionTimestamp.
func (p *Project) Delete(resource schema.GroupVersionResource, name types.NamespacedName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	found, ok := p.objects[resource][name]
	if !ok {
		return
	}
	object := found.DeepCopy()
	if len(object.GetFinalizers()) == 0 {
		p.store(resource, "DELETED", object)
		return
	}
	now := metav1.NewTime(time.Now())
	object.SetDeletionTimestamp(&now)
	p.store(resource, "MODIFIED", object)
}

// store applies a change, records its event, and sends it to the watches. It is called with the lock held.
func (p *Project) store(resource schema.GroupVersionResource, what string, object *unstructured.Unstructured) *unstructured.Unstructured {
	p.now++
	object.SetResourceVersion(version(p.now))
	if object.GetUID() == "" {
		object.SetUID(uuid.NewUUID())
		object.SetCreationTimestamp(metav1.NewTime(time.Now()))
	}
	name := types.NamespacedName{Namespace: object.GetNamespace(), Name: object.GetName()}
	if p.objects[resource] == nil {
		p.objects[resource] = map[types.NamespacedName]*unstructured.Unstructured{}
	}
	if what == "DELETED" {
		delete(p.objects[resource], name)
	} else {
		p.objects[resource][name] = object
	}
	happened := change{p.now, resource, name.Namespace, event(what, object)}
	if len(p.changes) == rememberedChanges {
		p.forgotten, p.changes = p.changes[0].version, p.changes[1:]
	}
	p.changes = append(p.changes, happened)
	for each := range p.watches {
		if !each.follows(happened) {
			continue
		}
		select {
		case each.events <- happened.event:
		default: // the watch is too far behind: close it, so that its client begins a new one
			close(each.ended)
			delete(p.watches, each)
		}
	}
	return object
}
