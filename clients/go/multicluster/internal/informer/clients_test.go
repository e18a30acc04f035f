package informer

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
)

var (
	configMap  = corev1.SchemeGroupVersion.WithKind("ConfigMap")
	configMaps = corev1.SchemeGroupVersion.WithResource("configmaps")
)

// TestObjectsAreThoseThatTheClientDecodes compares what both informers store from lists and watches.
func TestObjectsAreThoseThatTheClientDecodes(t *testing.T) {
	unknown := &unstructured.Unstructured{}
	unknown.SetGroupVersionKind(configMap)
	partial := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{Kind: configMap.Kind, APIVersion: "v1"}}
	for _, of := range []struct {
		mediaType string
		example   runtime.Object
		client    func(*source) toolscache.ListerWatcher
	}{
		{runtime.ContentTypeJSON, &corev1.ConfigMap{}, (*source).listerWatcher},
		{runtime.ContentTypeProtobuf, &corev1.ConfigMap{}, (*source).listerWatcher},
		{runtime.ContentTypeJSON, unknown, unstructuredClient},
		{runtime.ContentTypeJSON, partial, metadataClient},
		{runtime.ContentTypeProtobuf, partial, metadataClient},
	} {
		t.Run(fmt.Sprintf("%T %s", of.example, of.mediaType), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				s := newSource(true)
				s.mediaType = of.mediaType
				_, s.partial = of.example.(*metav1.PartialObjectMetadata)
				s.put("listed")
				group := NewGroup(ctx)
				theirs := toolscache.NewSharedIndexInformer(of.client(s), of.example, 0, toolscache.Indexers{})
				ours := group.New(scheme.Scheme)(of.client(s), of.example, 0, toolscache.Indexers{})
				go theirs.RunWithContext(ctx)
				ours.RunWithContext(ctx)
				for _, name := range []string{"created", "listed", "created"} {
					synctest.Wait()
					s.put(name)
				}
				synctest.Wait()
				for _, key := range []string{"default/listed", "default/created"} {
					want, _, _ := theirs.GetStore().GetByKey(key)
					got, _, _ := ours.GetStore().GetByKey(key)
					if want == nil || !reflect.DeepEqual(want, got) {
						t.Errorf("%s:\n%+v instead of\n%+v", key, got, want)
					}
				}
				stop()
				group.Wait()
			})
		})
	}
}

func TestWatchOfAClientWithATimeoutLastsThatLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		s := newSource(false)
		s.timeout = time.Minute
		group := NewGroup(ctx)
		i := group.New(scheme.Scheme)(s.listerWatcher(), &corev1.ConfigMap{}, 0, toolscache.Indexers{})
		i.RunWithContext(ctx)
		for n := range 3 {
			time.Sleep(s.timeout / 4)
			s.put(fmt.Sprint(n))
			synctest.Wait()
			if got := len(i.GetStore().List()); got != n+1 {
				t.Errorf("%d objects and not %d", got, n+1)
			}
		}
		if got := s.watched(); got != 1 {
			t.Errorf("%d watches", got)
		}
		stop()
		group.Wait()
	})
}

// TestListsLeaveNoGoroutines has changes follow a list that a watch begins with, for a client that filters its events. The
// test does not end while a goroutine is left.
func TestListsLeaveNoGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		s := newSource(true)
		s.partial = true
		s.sent = func() {
			for range 10 {
				s.change("changed")
			}
		}
		group := NewGroup(ctx)
		example := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{Kind: configMap.Kind, APIVersion: "v1"}}
		group.New(scheme.Scheme)(metadataClient(s), example, 0, toolscache.Indexers{}).RunWithContext(ctx)
		synctest.Wait()
		stop()
		group.Wait()
	})
}

func (s *source) config() (*rest.Config, *http.Client) {
	return &rest.Config{Host: "http://source", QPS: -1}, Client(&http.Client{Transport: s})
}

func unstructuredClient(s *source) toolscache.ListerWatcher {
	client, err := dynamic.NewForConfigAndClient(s.config())
	if err != nil {
		panic(err)
	}
	of := client.Resource(configMaps).Namespace("default")
	return &toolscache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return of.List(ctx, options)
		},
		WatchFuncWithContext: of.Watch,
	}
}

// metadataClient sets the kind of objects, as controller-runtime's cache does.
func metadataClient(s *source) toolscache.ListerWatcher {
	client, err := metadata.NewForConfigAndClient(s.config())
	if err != nil {
		panic(err)
	}
	of := client.Resource(configMaps).Namespace("default")
	return &toolscache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := of.List(ctx, options)
			if err != nil {
				return nil, err
			}
			for n := range list.Items {
				list.Items[n].SetGroupVersionKind(configMap)
			}
			return list, nil
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			opened, err := of.Watch(ctx, options)
			if err != nil {
				return nil, err
			}
			return watch.Filter(opened, func(e watch.Event) (watch.Event, bool) {
				e.Object.GetObjectKind().SetGroupVersionKind(configMap)
				return e, true
			}), nil
		},
	}
}
