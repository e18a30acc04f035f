package natssource

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// urlVariable is the environment variable for the URL of a NATS server with the namespaces of the project web, whose
// publisher is killed and started again.
const urlVariable = "MILO_NATS_TEST_URL"

func TestModuleReadsARealPublisher(t *testing.T) {
	url := os.Getenv(urlVariable)
	if url == "" {
		t.Skip(urlVariable + " is not set: tests/end_to_end/examples sets it")
	}
	r := startReader(t, Options{URL: url})
	untilCurrent := func(name string) {
		t.Helper()
		within(t, name+" to be known", func() error {
			view := r.found.View(namespaces)
			if names := strings.Fields(r.names(namespaces)); !slices.Contains(names, name) || !view.StaleSince().IsZero() {
				return fmt.Errorf("there are %q, and the view is %+v", names, view)
			}
			return nil
		})
		fmt.Println("CURRENT", name)
	}
	untilCurrent("web/default")
	fmt.Println("STALE:", r.untilProblem("no publisher has been heard since").Fleet.Problem)
	untilCurrent("web/while-away")
}
