package multicluster_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// hostileWatches are malformed response bodies of watches.
var hostileWatches = map[string]string{
	"empty":              "",
	"garbage":            "\xff\x00}]garbage\n",
	"half-an-event":      `{"type":"ADDED","object":{"apiVersion":"v1"`,
	"null":               "null\n",
	"no-object":          `{"type":"ADDED"}`,
	"object-is-null":     `{"type":"ADDED","object":null}`,
	"object-of-a-secret": `{"type":"ADDED","object":{"apiVersion":"v1","kind":"Secret","metadata":{"name":"a","namespace":"default"}}}`,
	"object-has-no-name": `{"type":"ADDED","object":{"apiVersion":"v1","kind":"ConfigMap"}}`,
	"unknown-type":       `{"type":"EXPLODED","object":{"apiVersion":"v1","kind":"ConfigMap"}}`,
	"error-is-no-status": `{"type":"ERROR","object":{"apiVersion":"v1","kind":"ConfigMap"}}`,
	"always-expired":     `{"type":"ERROR","object":{"apiVersion":"v1","kind":"Status","code":410}}`,
	"deep":               strings.Repeat("[", 1<<20),
	"endless":            `{"type":"` + strings.Repeat("a", 17<<20),
	"spaces":             strings.Repeat(" ", 1<<20),
}

func TestHostileProjectsAffectNoOtherProject(t *testing.T) {
	env := newEnvironment(t)
	for name, body := range hostileWatches {
		project := env.api.Project(name)
		project.Answer("configmaps", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			query := r.URL.Query()
			switch {
			case !query.Has("watch"):
				_, _ = io.WriteString(w, `{"apiVersion":"v1","kind":"ConfigMapList","metadata":{"resourceVersion":"1"}}`)
			case query.Has("sendInitialEvents"):
				w.WriteHeader(http.StatusUnprocessableEntity)
			default:
				_, _ = io.WriteString(w, body)
			}
		})
		env.engage(name)
	}
	env.engage("other")
	mgr := env.manager(env.provider(nil), nil)
	env.feeder(mgr)
	env.start(mgr)
	env.animal("other", "dog")
	env.untilFed("other", "dog")
	for name := range hostileWatches {
		project := env.api.Project(name)
		within(t, "a request after the watch of "+name, func() error {
			if project.Count("answer configmaps") < 4 { // the rejected watch list, a list, the hostile watch, and one more request
				return errors.New("there were fewer than 4 requests")
			}
			return nil
		})
		env.animal(name, "cat")
		project.Answer("configmaps", nil)
	}
	for name := range hostileWatches {
		env.untilFed(name, "cat")
	}
	env.animal("other", "cow")
	env.untilFed("other", "cow")
}
