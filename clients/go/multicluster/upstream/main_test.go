package upstream

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// The coordinator releases a cluster's Lease when the engagement ends, and retries for seconds if the API server has
	// stopped.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("sigs.k8s.io/multicluster-runtime/pkg/manager/coordinator/sharded.(*leaseGuard).Release"))
}
