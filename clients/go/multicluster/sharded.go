package multicluster

import (
	"errors"
	"reflect"

	"sigs.k8s.io/multicluster-runtime/pkg/manager/coordinator/sharded"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"
)

var errSharded = errors.New(
	"the manager has multicluster-runtime's sharded coordinator, in which the disengagement of one cluster also ends others: " +
		"remove it, and enable sharding in milo-discoveryd (docs/sharding.md), which assigns each replica its clusters",
)

// isSharded reports whether a manager has the sharded coordinator. It uses reflection, since the manager has no
// accessor.
func isSharded(aware multicluster.Aware) bool {
	manager := reflect.Indirect(reflect.ValueOf(aware))
	if manager.Kind() != reflect.Struct {
		return false
	}
	coordinator := manager.FieldByName("coord")
	return coordinator.Kind() == reflect.Interface && !coordinator.IsNil() &&
		coordinator.Elem().Type() == reflect.TypeFor[*sharded.Coordinator]()
}
