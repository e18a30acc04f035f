package prompt

import (
	"context"
	"fmt"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// readWithin is how long reads of a type wait for its informer, from the start of the first read since the last
// success. Without a limit, an unresponsive cluster would block the worker that reconciles it, and so other clusters.
const readWithin = 5 * time.Second

type typeKey struct {
	object reflect.Type
	kind   schema.GroupVersionKind // set for unstructured objects
}

// bounded calls read with a deadline for the type, which is reset after a success, since an informer can be removed.
func (c *Cache) bounded(ctx context.Context, of runtime.Object, read func(context.Context) error) error {
	kind := typeKey{reflect.TypeOf(of), of.GetObjectKind().GroupVersionKind()}
	first, _ := c.unanswered.LoadOrStore(kind, time.Now())
	within, cancel := context.WithDeadline(ctx, first.(time.Time).Add(readWithin))
	defer cancel()
	err := read(within)
	switch {
	case err == nil || apierrors.IsNotFound(err):
		c.unanswered.Delete(kind)
	case within.Err() != nil && ctx.Err() == nil:
		return fmt.Errorf("the informer of %T has not synced within %v of the first read: %w", of, readWithin, err)
	}
	return err
}

func (c *Cache) Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	return c.bounded(ctx, obj, func(ctx context.Context) error { return c.Cache.Get(ctx, key, obj, opts...) })
}

func (c *Cache) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	return c.bounded(ctx, list, func(ctx context.Context) error { return c.Cache.List(ctx, list, opts...) })
}
