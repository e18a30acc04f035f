package multicluster_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"go.uber.org/goleak"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// logVariable enables the log output of controller-runtime and the provider in tests, if it is set.
const logVariable = "TEST_LOG"

// logged records the failures that klog, controller-runtime and providers log about Things, in all tests.
var logged struct {
	mu    sync.Mutex
	lines []string
}

// logger returns a logger for tests, which records failures, and prints its output to stderr if shown.
func logger(shown bool) logr.Logger {
	return funcr.New(func(prefix, args string) {
		if shown {
			fmt.Fprintln(os.Stderr, prefix, args)
		}
		if strings.Contains(args, thing.Kind) && (strings.Contains(args, `"error"="`) || strings.Contains(args, `"reason"="`)) {
			logged.mu.Lock()
			defer logged.mu.Unlock()
			logged.lines = append(logged.lines, prefix+" "+args)
		}
	}, funcr.Options{LogTimestamp: true})
}

// loggedFrom returns the failures that were logged after the first n.
func loggedFrom(n int) []string {
	logged.mu.Lock()
	defer logged.mu.Unlock()
	return slices.Clone(logged.lines[n:])
}

// shardsVariable is the environment variable for the path of a JSON file that describes a real API server, and the
// daemons of a shard group whose clusters are its namespaces. tests/end_to_end/real writes the file.
const shardsVariable = "MILO_DISCOVERY_TEST_REAL_SHARDS"

func TestMain(m *testing.M) {
	log.SetLogger(logger(os.Getenv(logVariable) != ""))
	klog.SetLogger(logger(true))
	if os.Getenv(realVariable) != "" || os.Getenv(shardsVariable) != "" {
		os.Exit(m.Run()) // without goleak: client-go keeps idle connections to the real API servers
	}
	goleak.VerifyTestMain(m)
}
