package informer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

// shortestWatch and minWatchTimeout are those of client-go's reflector.
const (
	shortestWatch   = time.Second
	minWatchTimeout = 5 * time.Minute
)

// errShortWatch is for a watch with events that the server ended at once. client-go would not wait before the next one.
var errShortWatch = errors.New("the watch was shorter than a second")

// watching is what only the informer's goroutine uses.
type watching struct {
	logged    context.Context // that of the informer with the logger
	reflector *toolscache.Reflector
	listed    bool
	endList   context.CancelFunc
}

// work lists and watches until the informer's context ends.
func (i *informer[D]) work() {
	defer i.stop()
	defer utilruntime.HandleCrashWithContext(i.logged)
	// Two backoffs: with one, as in client-go, a list after an outage would wait as long as the last refused watch.
	refused := retries.DelayWithReset(clock.RealClock{}, resetRetriesAfter)
	failed := retries.DelayWithReset(clock.RealClock{}, resetRetriesAfter)
	for i.logged.Err() == nil {
		step := i.watch
		if !i.listed {
			step = i.list
		}
		if err := step(); err != nil {
			delay := failed
			if i.listed {
				delay = refused
			}
			select {
			case <-i.logged.Done():
			case <-time.After(delay()):
			}
		}
	}
}

// list has the reflector store a list.
func (i *informer[D]) list() error {
	ctx, end := context.WithCancel(i.logged)
	defer end()
	i.endList = func() {
		i.listed = true
		end()
	}
	if err := i.reflector.ListAndWatchWithContext(ctx); !i.listed {
		return i.report(err)
	}
	return nil
}

// watch watches from the last version on. It returns an error if the next step has to be delayed.
func (i *informer[D]) watch() error {
	timeout := int64(minWatchTimeout.Seconds() * (1 + rand.Float64()))
	opened, err := i.open(metav1.ListOptions{
		ResourceVersion: i.LastSyncResourceVersion(), TimeoutSeconds: &timeout, AllowWatchBookmarks: true,
	})
	switch {
	case err == nil:
		return i.ended(i.follow(opened))
	case utilnet.IsConnectionRefused(err), apierrors.IsTooManyRequests(err):
		return err // the version may still be available afterwards
	}
	i.listed = false
	return i.report(err)
}

// ended returns why a watch ended, and decides whether another list is needed.
func (i *informer[D]) ended(err error) error {
	switch {
	case err == nil, apierrors.IsTooManyRequests(err), errors.Is(err, errShortWatch):
		return err
	case !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) && i.logged.Err() == nil:
		klog.FromContext(i.logged).Info("Warning: watch ended with error", "type", i.reflector.TypeDescription(), "err", err)
	}
	i.listed = false
	return err
}

func (i *informer[D]) report(err error) error {
	if err != nil && i.logged.Err() == nil {
		i.mu.Lock()
		if i.failing.IsZero() {
			i.failing = time.Now()
		}
		i.mu.Unlock()
		i.failed(i.logged, i.reflector, err)
	}
	return err
}

// follow returns why the watch has ended: nil if the server ended it in order.
func (i *informer[D]) follow(s *stream) error {
	defer func() { _ = s.Close() }()
	for {
		s.wait()
		if done, err := i.receive(s); done {
			return err
		}
	}
}

// receive handles an event, and returns whether it was the last one.
func (i *informer[D]) receive(s *stream) (done bool, err error) {
	e, err := s.next()
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), utilnet.IsProbableEOF(err), utilnet.IsTimeout(err):
		switch {
		case time.Since(s.began) >= shortestWatch:
			return true, nil
		case s.count > 0:
			return true, errShortWatch
		}
		return true, &toolscache.VeryShortWatchError{Name: i.reflector.TypeDescription()}
	case err != nil:
		return true, fmt.Errorf("unable to decode an event: %w", err)
	case e.Type == watch.Error:
		return true, apierrors.FromObject(e.Object)
	}
	i.setKind(e.Object)
	if err := i.apply(e); err != nil {
		utilruntime.HandleErrorWithContext(i.logged, err, "Unable to handle watch event", "type", i.reflector.TypeDescription(), "event", e)
	}
	return false, nil
}

func (i *informer[D]) apply(e watch.Event) error {
	if err := i.expect(e.Object); err != nil {
		return err
	}
	found, err := meta.Accessor(e.Object)
	if err != nil {
		return err
	}
	store, version := sink[D]{i}, found.GetResourceVersion()
	defer i.note(version)
	switch e.Type {
	case watch.Added, watch.Modified:
		return store.Update(e.Object)
	case watch.Deleted:
		return store.Delete(e.Object)
	case watch.Bookmark:
		return store.Bookmark(version)
	default:
		return errors.New("unknown event")
	}
}

// setKind gives metadata the kind of the informer, as controller-runtime's cache does.
func (i *informer[D]) setKind(obj runtime.Object) {
	if _, ok := i.example.(*metav1.PartialObjectMetadata); ok {
		obj.GetObjectKind().SetGroupVersionKind(i.example.GetObjectKind().GroupVersionKind())
	}
}

// expect returns an error for an object that is not of the informer's type.
func (i *informer[D]) expect(obj runtime.Object) error {
	if want, got := reflect.TypeOf(i.example), reflect.TypeOf(obj); want != got {
		return fmt.Errorf("expected a %v, and got a %v", want, got)
	}
	want, got := i.example.GetObjectKind().GroupVersionKind(), obj.GetObjectKind().GroupVersionKind()
	if _, ok := obj.(runtime.Unstructured); ok && !want.Empty() && want != got {
		return fmt.Errorf("expected a %v, and got a %v", want, got)
	}
	return nil
}

func (i *informer[D]) note(version string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.version = version
}

// notBefore replaces the version of the reflector's last list by the informer's, so that a relist never goes back in time.
func (i *informer[D]) notBefore(options metav1.ListOptions) metav1.ListOptions {
	if options.ResourceVersion != "" && options.ResourceVersion != "0" {
		options.ResourceVersion = i.LastSyncResourceVersion()
	}
	return options
}
