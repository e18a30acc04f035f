// Lists the namespaces that a kubeconfig gives access to, by client-go: once, and again for each line on stdin. With
// "operate" after the kubeconfig, it is an operator instead.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	config, err := clientcmd.BuildConfigFromFlags("", os.Args[1])
	if err != nil {
		fail(err)
	}
	// Without the generated clients, which take minutes to compile.
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		fail(err)
	}
	if len(os.Args) > 2 && os.Args[2] == "operate" {
		operate(client, config.Host)
		return
	}
	list(client, config.Host)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		list(client, config.Host)
	}
}

func list(client *http.Client, host string) {
	response, err := client.Get(host + "/api/v1/namespaces")
	if err != nil {
		fail(err)
	}
	defer response.Body.Close()
	var found struct {
		Items []struct{ Metadata struct{ Name string } }
	}
	if err := json.NewDecoder(response.Body).Decode(&found); err != nil {
		fail(err)
	}
	var names []string
	for _, each := range found.Items {
		names = append(names, each.Metadata.Name)
	}
	fmt.Println(response.StatusCode, strings.Join(names, " "))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
