package multicluster_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"go.uber.org/goleak"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// logVariable enables the log output of controller-runtime and the provider in tests, if it is set.
const logVariable = "TEST_LOG"

func logger() logr.Logger {
	if os.Getenv(logVariable) == "" {
		return logr.Discard()
	}
	return funcr.New(func(prefix, args string) { fmt.Fprintln(os.Stderr, prefix, args) }, funcr.Options{LogTimestamp: true})
}

func TestMain(m *testing.M) {
	log.SetLogger(logger())
	if os.Getenv(realVariable) != "" {
		os.Exit(m.Run()) // client-go keeps idle connections to API servers that outlive the tests
	}
	goleak.VerifyTestMain(m)
}
