package objects

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	listTimeout = time.Minute
	// watchGrace is how long a watch may stay open after its timeout, which the API server ends. One that was never
	// answered is sent again then.
	watchGrace = 30 * time.Second
	// slotTime is how long a list counts as one of those at the same time: a cluster that does not answer delays no other.
	slotTime = 10 * time.Second

	acceptObjects      = "application/json"
	acceptMetadata     = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1," + acceptObjects
	acceptMetadataList = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1," + acceptObjects
)

// answerTime is how long a watch may be unanswered before the scope is Stale. It is a variable for tests.
var answerTime = 30 * time.Second

// silenceTime is how long a watch may be silent before another one is opened, whose answer shows whether the server
// hangs. API servers send a bookmark each minute. It is a variable for tests.
var silenceTime = 90 * time.Second

func isForbidden(err error) bool { return apierrors.IsForbidden(err) }
func isNotFound(err error) bool  { return apierrors.IsNotFound(err) }

// serializers decode the statuses that API servers answer with.
var serializers = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	return serializer.NewCodecFactory(scheme)
}()

func newClient(config *rest.Config) (rest.Interface, error) {
	config = rest.CopyConfig(config)
	config.NegotiatedSerializer = serializers.WithoutConversion()
	if config.UserAgent == "" {
		config.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	return rest.UnversionedRESTClientForConfigAndClient(config, client)
}

// follow keeps a scope current until ctx is done, and lists it again after it was dropped.
func (f *followedFleet) follow(ctx context.Context, of *scope, client rest.Interface) {
	for ctx.Err() == nil {
		attempt, exceed := context.WithCancelCause(ctx)
		f.budget.join(of, exceed)
		attempted := &follower{scope: of, objects: f, client: client, ctx: attempt}
		attempted.count()
		lister := unstreamed{&cache.ListWatch{ListWithContextFunc: attempted.list, WatchFuncWithContext: attempted.watch}}
		reflector := cache.NewReflectorWithOptions(lister, nil, attempted, cache.ReflectorOptions{
			Name: of.cluster.Name(), TypeDescription: of.kind.resource,
		})
		reflector.RunWithContext(klog.NewContext(attempt, klog.Logger{})) // what it would log is the scope's Problem
		f.budget.leave(of)
		exceed(nil)
		var dropped overBudget
		if !errors.As(context.Cause(attempt), &dropped) {
			return
		}
		f.change(of, func() []Change { return of.drop(dropped.Error(), time.Now()) })
		sleep(ctx, f.limits.Retry)
	}
}

// follower is one attempt to keep a scope current, with client-go's reflector.
type follower struct {
	*scope
	objects *followedFleet
	client  rest.Interface
	ctx     context.Context
}

// unstreamed makes the reflector list in place of streaming lists: many at once are refused with 429, and lists can wait
// for each other.
type unstreamed struct{ *cache.ListWatch }

func (unstreamed) IsWatchListSemanticsUnSupported() bool { return true }

func (f *follower) list(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	done, err := f.objects.lists.take(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := context.WithTimeoutCause(ctx, listTimeout, fmt.Errorf("the list took more than %v", listTimeout))
	defer cancel()
	list, err := f.page(ctx, options)
	if err != nil {
		return nil, f.failing(ctx, err)
	}
	return list, nil
}

func (f *follower) page(ctx context.Context, options metav1.ListOptions) (*seenList, error) {
	accept := acceptObjects
	if f.kind.metadataOnly {
		accept = acceptMetadataList
	}
	body, err := f.request(accept, options).Stream(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	limits := f.objects.limits
	bounded := &limited{from: body, limit: limits.Bytes, left: limits.Bytes}
	objects, bytes := 0, int64(0)
	return f.kind.decodeList(f.cluster, json.NewDecoder(bounded), func(found *seen) (bool, error) {
		f.complain(found)
		bounded.left = bounded.limit
		if found.object == nil {
			return f.object(found.place()) != nil, nil
		}
		objects, bytes = objects+1, bytes+found.object.bytes()
		return true, limits.problem(objects, bytes)
	})
}

// failing notes that a list or a watch failed, and returns its error.
func (f *follower) failing(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	var dropped overBudget
	switch {
	case errors.As(err, &dropped):
		f.objects.budget.exceed(f.scope, dropped)
	case apierrors.IsResourceExpired(err) || apierrors.IsGone(err): // a list follows
	default:
		state, problem := problemOf(err)
		f.change(func() []Change { return f.failed(state, problem, time.Now()) })
	}
	return err
}

func (f *follower) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	accept := acceptObjects
	if f.kind.metadataOnly {
		accept = acceptMetadata
	}
	timeout := watchGrace
	if options.TimeoutSeconds != nil {
		timeout += time.Duration(*options.TimeoutSeconds) * time.Second
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the watch did not end within %v", timeout))
	options.Watch = true
	// The watch stays open: a proxy may wait for its first event.
	late := time.AfterFunc(answerTime, func() {
		problem := fmt.Sprintf("the watch was not answered within %v", answerTime)
		f.change(func() []Change { return f.unanswered(problem, time.Now()) })
	})
	body, err := f.request(accept, options).Stream(ctx)
	late.Stop()
	if err != nil {
		err = f.failing(ctx, err)
		cancel()
		return nil, err
	}
	f.change(func() []Change { return f.answered(time.Now()) })
	bounded := &limited{from: body, limit: f.objects.limits.Bytes}
	events := &events{follower: f, body: body, cancel: cancel, bounded: bounded, decoder: json.NewDecoder(bounded), heard: time.Now()}
	events.silence = time.AfterFunc(silenceTime, func() {
		events.isSilent.Store(true)
		cancel()
	})
	return watch.NewStreamWatcher(events, reporter), nil
}

var reporter = apierrors.NewClientErrorReporter(http.StatusInternalServerError, http.MethodGet, "ClientWatchDecoding")

func (f *follower) request(accept string, options metav1.ListOptions) *rest.Request {
	request := f.client.Get().AbsPath(f.kind.path...).SetHeader("Accept", accept)
	for name, value := range map[string]string{
		"resourceVersion": options.ResourceVersion, "resourceVersionMatch": string(options.ResourceVersionMatch), "continue": options.Continue,
		"limit": text(options.Limit), "timeoutSeconds": text(options.TimeoutSeconds),
		"watch": text(options.Watch), "allowWatchBookmarks": text(options.AllowWatchBookmarks),
	} {
		if value != "" {
			request.Param(name, value)
		}
	}
	return request
}

// text returns a parameter of a request, empty for one that is not set.
func text(value any) string {
	switch value := value.(type) {
	case bool:
		if value {
			return "true"
		}
	case int64:
		if value != 0 {
			return strconv.FormatInt(value, 10)
		}
	case *int64:
		if value != nil {
			return strconv.FormatInt(*value, 10)
		}
	}
	return ""
}

// events decodes the events of a watch.
type events struct {
	follower *follower
	body     io.Closer
	cancel   context.CancelFunc
	bounded  *limited
	decoder  *json.Decoder
	heard    time.Time // when the last event arrived: a server that hangs is noticed later
	silence  *time.Timer
	isSilent atomic.Bool
}

type watchEvent struct {
	Type   watch.EventType `json:"type"`
	Object json.RawMessage `json:"object"`
}

// Decode returns the next event.
func (e *events) Decode() (watch.EventType, runtime.Object, error) {
	kind, object, err := e.decode()
	if err == nil {
		e.silence.Reset(silenceTime)
		e.heard = time.Now()
		return kind, object, nil
	}
	e.follower.interrupted(e.heard)
	if e.isSilent.Load() {
		err = io.EOF // as if the server had ended it: the next watch goes on from here
	}
	return kind, object, err
}

func (e *events) decode() (watch.EventType, runtime.Object, error) {
	e.bounded.left = e.bounded.limit
	var event watchEvent
	if err := e.decoder.Decode(&event); err != nil {
		return "", nil, err
	}
	switch event.Type {
	case watch.Added, watch.Modified, watch.Deleted:
		found, err := e.follower.kind.decode(e.follower.cluster, event.Object)
		if err != nil {
			return "", nil, err
		}
		e.follower.complain(found)
		return event.Type, found, nil
	case watch.Bookmark:
		var bookmark struct{ Metadata identity }
		err := json.Unmarshal(event.Object, &bookmark)
		return event.Type, &seen{ObjectMeta: metav1.ObjectMeta{ResourceVersion: bookmark.Metadata.ResourceVersion}}, err
	case watch.Error:
		status := &metav1.Status{}
		return event.Type, status, json.Unmarshal(event.Object, status)
	}
	return "", nil, fmt.Errorf("the watch sent an event of type %q", event.Type)
}

// Close ends the watch.
func (e *events) Close() {
	e.silence.Stop()
	e.cancel()
	_ = e.body.Close()
}

// limited is a reader that fails after a number of bytes.
type limited struct {
	from        io.Reader
	limit, left int64
}

func (l *limited) Read(to []byte) (int, error) {
	if l.left <= 0 {
		return 0, overBudget(fmt.Sprintf("a response has more than %d bytes (Limits.Bytes)", l.limit))
	}
	count, err := l.from.Read(to)
	l.left -= int64(count)
	return count, err
}

// --- what the reflector calls ---

// Add applies a new object.
func (f *follower) Add(found any) error { return f.saw(found, false) }

// Update applies a changed object.
func (f *follower) Update(found any) error { return f.saw(found, false) }

// Delete applies a deletion.
func (f *follower) Delete(found any) error { return f.saw(found, true) }

func (f *follower) saw(found any, isDeleted bool) error {
	f.change(func() []Change { return f.apply(found.(*seen), isDeleted, ObjectDeleted) })
	f.count()
	return nil
}

// Replace applies a complete list.
func (f *follower) Replace(items []any, _ string) error {
	all := make([]*seen, len(items))
	for i, item := range items {
		all[i] = item.(*seen)
	}
	f.change(func() []Change { return f.replace(all, time.Now()) })
	f.count()
	return nil
}

// Resync does nothing.
func (f *follower) Resync() error { return nil }

// change applies and reports a change, unless the attempt has ended: one of its goroutines may outlive it.
func (f *follower) change(apply func() []Change) {
	f.objects.change(f.scope, func() []Change {
		if f.ctx.Err() != nil {
			return nil
		}
		return apply()
	})
}

func (f *follower) count() {
	objects, bytes := f.size()
	f.objects.budget.count(f.scope, objects, bytes)
}

func (f *follower) complain(found *seen) {
	if found.problem != nil {
		f.objects.options.OnError(f.cluster, found.problem)
	}
}

// slots limits the lists at the same time.
type slots chan struct{}

// take waits for a slot. It is free again after done, or after slotTime.
func (s slots) take(ctx context.Context) (done func(), err error) {
	select {
	case s <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	free := make(chan struct{}, 1)
	release := func() {
		select {
		case free <- struct{}{}:
			<-s
		default:
		}
	}
	timer := time.AfterFunc(slotTime, release)
	return func() { timer.Stop(); release() }, nil
}

// sleep waits for a delay, or until ctx is done.
func sleep(ctx context.Context, delay time.Duration) {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
