package informer

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// lister is what the reflector reads from. Its run ends with the list, and so does a watch that begins with one.
type lister[D any] struct{ of *informer[D] }

func (l lister[D]) List(options metav1.ListOptions) (runtime.Object, error) {
	return l.ListWithContext(l.of.ctx, options)
}

func (l lister[D]) ListWithContext(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	return l.of.lw.ListWithContext(ctx, l.of.notBefore(options))
}

func (l lister[D]) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return l.WatchWithContext(l.of.ctx, options)
}

func (l lister[D]) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	opened, err := l.of.lw.WatchWithContext(ctx, l.of.notBefore(options))
	if err != nil {
		return nil, err
	}
	return drained{opened}, nil
}

func (l lister[D]) IsWatchListSemanticsUnSupported() bool { return l.of.withoutWatchList }

// drained is a watch that discards its pending events when it is stopped. Otherwise the goroutine of watch.Filter, which
// controller-runtime uses for metadata, stays blocked.
type drained struct{ watch.Interface }

func (d drained) Stop() {
	d.Interface.Stop()
	go func() {
		for range d.ResultChan() {
		}
	}()
}
