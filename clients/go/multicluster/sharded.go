package multicluster

import (
	"errors"
	"reflect"

	"sigs.k8s.io/multicluster-runtime/pkg/manager/coordinator/sharded"
	"sigs.k8s.io/multicluster-runtime/pkg/multicluster"
)

var errSharded = errors.New(
	"the manager has multicluster-runtime's sharded coordinator, in which the disengagement of one cluster ends others: " +
		"remove it, and have milo-discoveryd share the clusters (docs/sharding.md), so that each replica is given its own",
)

// isSharded returns whether a manager has the sharded coordinator, for which it has no method.
func isSharded(aware multicluster.Aware) bool {
	manager := reflect.Indirect(reflect.ValueOf(aware))
	if manager.Kind() != reflect.Struct {
		return false
	}
	coordinator := manager.FieldByName("coord")
	return coordinator.Kind() == reflect.Interface && !coordinator.IsNil() &&
		coordinator.Elem().Type() == reflect.TypeFor[*sharded.Coordinator]()
}
