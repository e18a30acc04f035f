// Reads manifests, and reports fields that the Prometheus operator's types for its kinds do not have.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

var kinds = map[string]func() any{
	"PodMonitor":     func() any { return &monitoring.PodMonitor{} },
	"PrometheusRule": func() any { return &monitoring.PrometheusRule{} },
}

func main() {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(os.Stdin))
	wrong := false
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		var head struct{ Kind string }
		if err := yaml.Unmarshal(document, &head); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		empty, known := kinds[head.Kind]
		if !known {
			continue
		}
		if err := yaml.UnmarshalStrict(document, empty()); err != nil {
			fmt.Printf("%s: %v\n", head.Kind, err)
			wrong = true
			continue
		}
		fmt.Printf("%s: valid\n", head.Kind)
	}
	if wrong {
		os.Exit(1)
	}
}
