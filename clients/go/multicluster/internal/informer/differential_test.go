package informer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
)

const (
	seeds = 150
	steps = 40
	// reconnected is longer than the longest backoff of a reflector.
	reconnected = 3 * time.Minute
)

// TestInformerDoesWhatClientGoDoes has both follow one source on virtual time, and compares them after each step.
func TestInformerDoesWhatClientGoDoes(t *testing.T) {
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newComparison(t, rand.New(rand.NewPCG(seed, 0))).run() })
		})
	}
}

// comparison is one run of both informers. Fields with two elements have client-go's first.
type comparison struct {
	*testing.T
	random    *rand.Rand
	source    *source
	informers [2]toolscache.SharedIndexInformer
	handlers  [][2]*recorder
	stop      context.CancelFunc
	stopped   chan struct{}
}

func newComparison(t *testing.T, random *rand.Rand) *comparison {
	ctx, stop := context.WithCancel(t.Context())
	c := &comparison{T: t, random: random, source: newSource(random.IntN(2) == 0), stop: stop, stopped: make(chan struct{})}
	if c.chance(2) {
		c.source.mediaType = runtime.ContentTypeProtobuf
	}
	c.source.taken = !c.chance(5)
	group := NewGroup(ctx)
	c.informers[0] = toolscache.NewSharedIndexInformer(c.source.listerWatcher(), &corev1.ConfigMap{}, 0, toolscache.Indexers{})
	c.informers[1] = group.New(scheme.Scheme)(c.source.listerWatcher(), &corev1.ConfigMap{}, 0, toolscache.Indexers{})
	// The default one limits its rate by a clock that is not of the test.
	c.each(func(i toolscache.SharedIndexInformer) error {
		return i.SetWatchErrorHandler(func(*toolscache.Reflector, error) {})
	})
	if c.chance(3) {
		c.each(func(i toolscache.SharedIndexInformer) error { return i.SetTransform(annotate) })
	}
	if c.chance(2) {
		c.addIndex()
	}
	for range random.IntN(3) {
		c.addHandler()
	}
	for range random.IntN(10) {
		c.source.put(c.name())
	}
	if c.chance(3) {
		c.source.fail(c.outage())
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.informers[0].RunWithContext(ctx)
	}()
	c.informers[1].RunWithContext(ctx)
	go func() {
		defer close(c.stopped)
		group.Wait()
		<-ended
	}()
	return c
}

func (c *comparison) run() {
	c.compare()
	c.source.fail(nil)
	time.Sleep(reconnected)
	c.compare()
	for range steps {
		c.step()
		c.compare()
	}
	for _, pair := range c.handlers {
		pair[0].unblock()
		pair[1].unblock()
	}
	c.compare()
	c.stop()
	<-c.stopped
	for _, i := range c.informers {
		_, err := i.AddEventHandler(newRecorder())
		if !i.IsStopped() || err == nil || i.AddIndexers(toolscache.Indexers{"late": parity}) == nil {
			c.Errorf("%T was stopped, and takes a handler or an indexer", i)
		}
	}
}

func (c *comparison) step() {
	switch c.random.IntN(14) {
	case 0, 1, 2, 3:
		for range 1 + c.random.IntN(4) {
			c.source.put(c.name())
		}
	case 4, 5:
		c.source.remove(c.name())
	case 6:
		c.source.sendBookmark()
	case 7:
		c.source.disconnect(nil)
		time.Sleep(reconnected)
	case 8:
		c.source.disconnect([]*apierrors.StatusError{
			apierrors.NewResourceExpired("too old resource version"), apierrors.NewTooManyRequests("test", 1), apierrors.NewInternalError(syscall.EIO),
		}[c.random.IntN(3)])
		time.Sleep(reconnected)
	case 9, 10:
		c.suffer()
	case 11:
		c.addHandler()
	case 12:
		c.removeHandler()
	case 13:
		if len(c.handlers) > 0 {
			pair := c.handlers[c.random.IntN(len(c.handlers))]
			change := (*recorder).unblock
			if c.chance(2) {
				change = (*recorder).block
			}
			change(pair[0])
			change(pair[1])
		}
	}
}

// suffer has the server answer with errors for a while, in which objects change. It lasts until both have met an error:
// when they try again is random, and after an error some list again, where others resume.
func (c *comparison) suffer() {
	c.source.fail(c.outage())
	c.source.disconnect(nil)
	for range c.random.IntN(8) {
		if c.chance(3) {
			c.source.remove(c.name())
		} else {
			c.source.put(c.name())
		}
	}
	if c.chance(2) {
		c.source.compact()
	}
	time.Sleep(reconnected + time.Duration(c.random.IntN(300))*time.Second)
	c.source.fail(nil)
	time.Sleep(reconnected)
}

func (c *comparison) outage() error {
	return []error{
		syscall.ECONNREFUSED, apierrors.NewServiceUnavailable("test"), apierrors.NewTooManyRequests("test", 1),
		apierrors.NewInternalError(syscall.EIO),
	}[c.random.IntN(4)]
}

func (c *comparison) addHandler() {
	var pair [2]*recorder
	blocked := c.chance(5)
	for n, i := range c.informers {
		pair[n] = newRecorder()
		if blocked {
			pair[n].block()
		}
		var err error
		if pair[n].registration, err = i.AddEventHandler(pair[n]); err != nil {
			c.Fatal(err)
		}
	}
	c.handlers = append(c.handlers, pair)
}

func (c *comparison) removeHandler() {
	if len(c.handlers) == 0 {
		return
	}
	at := c.random.IntN(len(c.handlers))
	pair := c.handlers[at]
	c.handlers = slices.Delete(c.handlers, at, at+1)
	for n, i := range c.informers {
		before := pair[n].count()
		if err := i.RemoveEventHandler(pair[n].registration); err != nil {
			c.Error(err)
		}
		pair[n].unblock()
		synctest.Wait()
		if more := pair[n].count() - before; more > 1 { // one call was blocked
			c.Errorf("a removed handler had %d events", more)
		}
		pair[n].remove()
	}
}

func (c *comparison) addIndex() {
	c.each(func(i toolscache.SharedIndexInformer) error {
		return i.AddIndexers(toolscache.Indexers{"parity": parity})
	})
}

func (c *comparison) each(do func(toolscache.SharedIndexInformer) error) {
	for _, i := range c.informers {
		if err := do(i); err != nil {
			c.Fatal(err)
		}
	}
}

// compare compares everything that can be seen of the informers.
func (c *comparison) compare() {
	c.Helper()
	synctest.Wait()
	var seen [2]view
	for n, i := range c.informers {
		seen[n] = view{Synced: i.HasSynced(), Version: i.LastSyncResourceVersion(), Objects: described(i.GetStore().List())}
		if indexed, err := i.GetIndexer().ByIndex("parity", "1"); err == nil {
			seen[n].Indexed = described(indexed)
		}
		for _, pair := range c.handlers {
			seen[n].Handlers = append(seen[n].Handlers, pair[n].view())
		}
	}
	if !reflect.DeepEqual(seen[0], seen[1]) {
		c.Fatalf("client-go's:\n%+v\nours:\n%+v", seen[0], seen[1])
	}
	for _, each := range seen[0].Handlers {
		if each.Blocked || !each.Synced {
			continue
		}
		if !slices.Equal(each.Has, seen[0].Objects) {
			c.Fatalf("a handler has %v of %v", each.Has, seen[0].Objects)
		}
	}
}

func (c *comparison) chance(of int) bool { return c.random.IntN(of) == 0 }

func (c *comparison) name() string { return fmt.Sprintf("object-%d", c.random.IntN(8)) }

type view struct {
	Synced           bool
	Version          string
	Objects, Indexed []string
	Handlers         []handlerView
}

type handlerView struct {
	Synced, Blocked bool
	Has             []string            // the objects after all events
	Events          map[string][]string // by object
}

// recorder is a handler that notes its calls, and can be blocked.
type recorder struct {
	registration toolscache.ResourceEventHandlerRegistration

	mu      sync.Mutex
	gate    chan struct{} // nil if it is not blocked
	removed bool
	calls   int
	events  map[string][]string
	has     map[string]any
}

func newRecorder() *recorder {
	return &recorder{events: map[string][]string{}, has: map[string]any{}}
}

func (r *recorder) block() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gate == nil {
		r.gate = make(chan struct{})
	}
}

func (r *recorder) unblock() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gate != nil {
		close(r.gate)
		r.gate = nil
	}
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

func (r *recorder) remove() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed = true
}

func (r *recorder) view() handlerView {
	r.mu.Lock()
	defer r.mu.Unlock()
	has := make([]any, 0, len(r.has))
	for _, each := range r.has {
		has = append(has, each)
	}
	events := map[string][]string{}
	for key, each := range r.events {
		events[key] = slices.Clone(each)
	}
	return handlerView{Synced: r.registration.HasSynced(), Blocked: r.gate != nil, Has: described(has), Events: events}
}

// note notes a call. The handler must know the old object as the one that it was given last.
func (r *recorder) note(old, now any, text string) {
	r.mu.Lock()
	gate := r.gate
	r.mu.Unlock()
	if gate != nil {
		<-gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.removed {
		panic("the handler was removed")
	}
	r.calls++
	obj := now
	if now == nil {
		obj = old
	}
	key, err := toolscache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		panic(err)
	}
	before, known := r.has[key]
	if known != (old != nil) || (now != nil && known && before != old) {
		text += ", which the handler did not expect"
	}
	r.events[key] = append(r.events[key], text)
	delete(r.has, key)
	if now != nil {
		r.has[key] = now
	}
}

func (r *recorder) OnAdd(obj any, initial bool) {
	r.note(nil, obj, fmt.Sprintf("added %s %t", describe(obj), initial))
}

func (r *recorder) OnUpdate(old, now any) {
	r.note(old, now, fmt.Sprintf("updated %s %s", describe(old), describe(now)))
}

func (r *recorder) OnDelete(obj any) { r.note(obj, nil, "deleted "+describe(obj)) }

func described(objects []any) []string {
	texts := make([]string, 0, len(objects))
	for _, each := range objects {
		texts = append(texts, describe(each))
	}
	slices.Sort(texts)
	return texts
}

func annotate(obj any) (any, error) {
	if changed, ok := obj.(*corev1.ConfigMap); ok {
		changed.Annotations = map[string]string{"transformed": "true"}
	}
	return obj, nil
}

func parity(obj any) ([]string, error) { return []string{obj.(*corev1.ConfigMap).Data["parity"]}, nil }
