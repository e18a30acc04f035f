package informer

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// started returns a running informer of a source with one object, on virtual time.
func started(t *testing.T, resync time.Duration) (*Group, toolscache.SharedIndexInformer, *source, context.CancelFunc) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	s := newSource(true)
	s.put("first")
	group := NewGroup(ctx)
	i := group.New(scheme.Scheme)(s.listerWatcher(), &corev1.ConfigMap{}, resync, toolscache.Indexers{})
	i.RunWithContext(t.Context())
	synctest.Wait()
	return group, i, s, stop
}

func added(t *testing.T, i toolscache.SharedIndexInformer, resync time.Duration) *recorder {
	t.Helper()
	r := newRecorder()
	var err error
	if r.registration, err = i.AddEventHandlerWithResyncPeriod(r, resync); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestWaitWaitsForHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		group, i, _, stop := started(t, 0)
		r := newRecorder()
		r.block()
		if _, err := i.AddEventHandler(r); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		stop()
		waited := make(chan struct{})
		go func() {
			defer close(waited)
			group.Wait()
		}()
		synctest.Wait()
		select {
		case <-waited:
			t.Error("a handler was running")
		default:
		}
		r.unblock()
		<-waited
	})
}

func TestHandlersAreResyncedAfterTheirPeriods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, i, s, stop := started(t, 10*time.Second)
		defer stop()
		never, often, seldom := added(t, i, 0), added(t, i, time.Millisecond), added(t, i, 25*time.Second)
		time.Sleep(61 * time.Second)
		synctest.Wait()
		for n, want := range map[*recorder]int{never: 1, often: 7, seldom: 3} {
			if n.count() != want {
				t.Errorf("%d calls instead of %d", n.count(), want)
			}
		}
		s.put("second")
		synctest.Wait()
		if never.count() != 2 {
			t.Error("the handler without a resync did not get a new object")
		}
	})
}

func TestInformerWithoutResyncPeriodDoesNotResync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, i, _, stop := started(t, 0)
		defer stop()
		r := added(t, i, time.Second)
		time.Sleep(time.Hour)
		synctest.Wait()
		if r.count() != 1 {
			t.Errorf("%d calls", r.count())
		}
	})
}

// TestWatchesThatEndAfterAnEventAreDelayed has a server end each watch at once. client-go's informer would never wait.
func TestWatchesThatEndAfterAnEventAreDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		var lists, watches int
		group := NewGroup(ctx)
		i := group.New(scheme.Scheme)(&toolscache.ListWatch{
			ListWithContextFunc: func(context.Context, metav1.ListOptions) (apiruntime.Object, error) {
				lists++
				return &corev1.ConfigMapList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}}, nil
			},
			WatchFuncWithContext: func(_ context.Context, options metav1.ListOptions) (watch.Interface, error) {
				if options.SendInitialEvents != nil {
					return nil, apierrors.NewBadRequest("lists in watches are off")
				}
				if watches++; watches > 100 {
					return nil, errors.New("too many")
				}
				w := watch.NewFakeWithChanSize(1, false)
				w.Add(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: strconv.Itoa(1 + watches)}})
				w.Stop()
				return w, nil
			},
		}, &corev1.ConfigMap{}, 0, toolscache.Indexers{})
		i.RunWithContext(ctx)
		time.Sleep(time.Minute)
		synctest.Wait()
		if watches < 3 || watches > 10 || lists != 1 {
			t.Errorf("%d watches and %d lists in a minute", watches, lists)
		}
		if got := i.LastSyncResourceVersion(); got != strconv.Itoa(1+watches) {
			t.Errorf("at version %s after %d watches", got, watches)
		}
		stop()
		group.Wait()
	})
}

func TestFailedTransformIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		s := newSource(false)
		s.put("first")
		i := NewGroup(ctx).New(scheme.Scheme)(s.listerWatcher(), &corev1.ConfigMap{}, 0, toolscache.Indexers{})
		var works atomic.Bool
		failed := 0
		if err := errors.Join(i.SetTransform(func(obj any) (any, error) {
			if !works.Load() {
				return nil, errors.New("not now")
			}
			return obj, nil
		}), i.SetWatchErrorHandler(func(*toolscache.Reflector, error) { failed++ })); err != nil {
			t.Fatal(err)
		}
		i.Run(nil)
		synctest.Wait()
		if i.HasSynced() || failed != 1 {
			t.Errorf("synced: %t; the handler of errors had %d", i.HasSynced(), failed)
		}
		works.Store(true)
		time.Sleep(reconnected)
		synctest.Wait()
		if !i.HasSynced() || len(i.GetStore().ListKeys()) != 1 {
			t.Error("it has not synced")
		}
		if i.SetTransform(nil) == nil || i.SetWatchErrorHandler(nil) == nil {
			t.Error("a started informer was changed")
		}
	})
}

func TestEndEndsInformersForOneKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		group, s := NewGroup(ctx), newSource(false)
		s.fail(errors.New("it is away"))
		examples := []client.Object{&corev1.ConfigMap{}, &corev1.Secret{}, thing("Thing"), thing("Other")}
		informers := make([]toolscache.SharedIndexInformer, len(examples))
		for n, each := range examples {
			informers[n] = group.New(scheme.Scheme)(s.listerWatcher(), each, 0, toolscache.Indexers{})
			if err := informers[n].SetWatchErrorHandler(func(*toolscache.Reflector, error) {}); err != nil {
				t.Fatal(err)
			}
			informers[n].RunWithContext(ctx)
		}
		group.End(&corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}})
		group.End(thing("Thing"))
		for n, ended := range []bool{true, false, true, false} {
			if ended {
				informers[n].(interface{ AwaitSync(context.Context) }).AwaitSync(ctx)
			}
			synctest.Wait()
			if informers[n].IsStopped() != ended {
				t.Errorf("the informer of %T: stopped is %t", examples[n], !ended)
			}
		}
		stop()
		group.Wait()
	})
}

func thing(kind string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(schema.GroupVersionKind{Version: "v1", Kind: kind})
	return u
}

func TestIdleInformersHaveOneGoroutine(t *testing.T) {
	for _, of := range []struct {
		watchLists bool
		most       int
	}{{false, 1000}, {true, 1000}, {true, 1}} { // with one byte at once, the line end after an event comes alone
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			s := newSource(of.watchLists)
			s.most = of.most
			s.put("first")
			group := NewGroup(ctx)
			i := group.New(scheme.Scheme)(s.listerWatcher(), &corev1.ConfigMap{}, time.Hour, toolscache.Indexers{})
			i.RunWithContext(ctx)
			for range 100 {
				added(t, i, 0)
			}
			for n := range 5 {
				s.put(fmt.Sprint(n))
				s.sendBookmark()
				synctest.Wait()
				found := goroutines()
				for what, want := range map[string]int{".(*stream).wait(": 1, "watch.(*StreamWatcher)": 0, ").deliver(": 0} {
					if got := strings.Count(found, what); got != want {
						t.Errorf("after %d changes, %d goroutines are in %s, and not %d:\n%s", n+1, got, what, want, found)
					}
				}
				if got := len(i.GetStore().List()); got != n+2 {
					t.Errorf("%d objects and not %d", got, n+2)
				}
			}
			stop()
			group.Wait()
		})
	}
}

// goroutines returns their stacks. Their number would include those that are ending.
func goroutines() string {
	text := make([]byte, 1<<20)
	return string(text[:runtime.Stack(text, true)])
}

// done returns whether the checker that client-go has since 0.36 is done.
func done(of any) bool {
	checked := reflect.ValueOf(of).MethodByName("HasSyncedChecker").Call(nil)[0].Interface()
	select {
	case <-checked.(interface{ Done() <-chan struct{} }).Done():
		return true
	default:
		return false
	}
}

func TestCheckersAreDoneWithInformerAndHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		s := newSource(true)
		s.put("first")
		i := NewGroup(ctx).New(scheme.Scheme)(s.listerWatcher(), &corev1.ConfigMap{}, 0, toolscache.Indexers{})
		r := added(t, i, 0)
		r.block()
		before := []bool{done(i), done(r.registration)}
		i.RunWithContext(ctx)
		synctest.Wait()
		listed := []bool{done(i), done(r.registration), done(i.GetController())}
		r.unblock()
		synctest.Wait()
		seen := slices.Concat(before, listed, []bool{done(r.registration)})
		if want := []bool{false, false, true, false, true, true}; !slices.Equal(seen, want) {
			t.Errorf("%v instead of %v", seen, want)
		}
		stop()
	})
}

func TestUnknownClientGoGetsItsOwnInformer(t *testing.T) {
	group := NewGroup(t.Context())
	s := newSource(true)
	_, known := reflect.TypeFor[toolscache.SharedIndexInformer]().MethodByName("HasSyncedChecker")
	i := create(func(probe) int { return 0 }, group, scheme.Scheme, s.listerWatcher(), &corev1.ConfigMap{}, 0, toolscache.Indexers{})
	if _, ours := any(i).(*informer[int]); ours == known {
		t.Errorf("a %T", i)
	}
	if _, theirs := group.New(scheme.Scheme)(s.listerWatcher(), &corev1.ConfigMap{}, 0, toolscache.Indexers{}).(interface{ AwaitSync(context.Context) }); !theirs {
		t.Error("New returned client-go's informer")
	}
}
