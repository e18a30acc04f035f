package tests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"go.miloapis.com/discovery"
	"go.miloapis.com/discovery/objects"
)

// addressVariable is the environment variable for the address of a daemon that has engaged the project alpha, and issues
// kubeconfigs for it.
const addressVariable = "MILO_DISCOVERY_TEST_ADDRESS"

func TestModuleWorksWithARealDaemon(t *testing.T) {
	address := os.Getenv(addressVariable)
	if address == "" {
		t.Skip(addressVariable + " is not set: tests/end_to_end/go_modules sets it")
	}
	client, err := discovery.Dial(discovery.Options{Address: address, Credentials: &discovery.Credentials{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	env := &environment{t: t}
	const configMaps = "v1/configmaps"
	found, err := objects.New(client, objects.Options{
		Kinds:    []objects.Kind{{Resource: namespaces}, {Resource: configMaps, Fields: []string{"data.of"}}, {Resource: "v1/secrets", Secrets: true}},
		Indexes:  indexes,
		OnChange: env.note,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- found.Run(ctx) }()
	for _, kind := range []string{namespaces, configMaps, "v1/secrets"} {
		within(t, kind+" to be known", func() error { return found.View(kind).Err() })
	}
	hits := found.Find("name", "default")
	if len(hits) != 1 || hits[0].Cluster.Name() != "alpha" {
		t.Fatalf("found %+v, want the namespace default of alpha", hits)
	}

	kubernetes, err := dynamic.NewForConfig(objects.RESTConfig(hits[0].Cluster))
	if err != nil {
		t.Fatal(err)
	}
	written := kubernetes.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace("default")
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "shop"}, "data": map[string]any{"of": "1", "noise": "1"},
	}}
	if object, err = written.Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	untilContent := func(want string) {
		t.Helper()
		within(t, want, func() error {
			hits := found.Find("uid", string(object.GetUID()))
			if len(hits) != 1 || string(hits[0].Content) != want {
				return fmt.Errorf("found %+v", hits)
			}
			return nil
		})
	}
	untilContent(`{"data":{"of":"1"}}`)
	for _, value := range []string{"1", "2"} { // the first one changes only what is not kept
		object.Object["data"] = map[string]any{"of": value, "noise": "2"}
		if object, err = written.Update(t.Context(), object, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	untilContent(`{"data":{"of":"2"}}`)
	if err := written.Delete(t.Context(), "shop", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	env.expect("alpha", "+shop", "+shop -shop", "-shop OBJECT_DELETED")
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run() error = %v, want context.Canceled", err)
	}
}
