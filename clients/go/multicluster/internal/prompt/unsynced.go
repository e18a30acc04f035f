package prompt

import (
	"fmt"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// Reason is the reason why an informer has not synced.
type Reason string

const (
	Syncing   Reason = "syncing"   // no failure yet; the first list is not complete
	Absent    Reason = "absent"    // the cluster does not serve the kind
	Forbidden Reason = "forbidden" // the cluster rejects the identity, or does not authorize it
	Failing   Reason = "failing"   // any other failure
)

// Unsynced is an informer that has not synced, or failed after it synced.
type Unsynced struct {
	Kind    string    `json:"kind"` // in the format of kubectl arguments: KIND.VERSION.GROUP
	Reason  Reason    `json:"reason"`
	Message string    `json:"message,omitempty"`
	Since   time.Time `json:"since"`

	description string // type of the informer's objects
}

func newUnsynced(obj runtime.Object, scheme *runtime.Scheme) Unsynced {
	u := Unsynced{Reason: Syncing, Since: time.Now(), description: reflect.TypeOf(obj).String()}
	kind, err := apiutil.GVKForObject(obj, scheme)
	if err != nil {
		u.Kind = u.description // the type is not registered in the scheme
		return u
	}
	u.Kind = kindName(kind)
	return u
}

func kindName(kind schema.GroupVersionKind) string {
	if kind.Group == "" {
		return fmt.Sprintf("%s.%s", kind.Kind, kind.Version)
	}
	return fmt.Sprintf("%s.%s.%s", kind.Kind, kind.Version, kind.Group)
}

func (u Unsynced) because(err error) Unsynced {
	u.Message = err.Error()
	switch {
	case meta.IsNoMatchError(err), apierrors.IsNotFound(err):
		u.Reason = Absent
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		u.Reason = Forbidden
	default:
		u.Reason = Failing
	}
	return u
}
