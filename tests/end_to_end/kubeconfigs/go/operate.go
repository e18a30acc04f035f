// An operator that writes one ConfigMap after the other and receives each of them in one watch, until stdin closes.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

const pause = 100 * time.Millisecond

type configMap struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
}

func operate(client *http.Client, host string) {
	collection := host + "/api/v1/namespaces/default/configmaps"
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	seen := make(chan string)
	go watch(client, collection, seen)
	count, refused := 0, 0
	for {
		select {
		case <-ended:
			fmt.Println(count, refused)
			return
		case <-time.After(pause):
		}
		name := fmt.Sprintf("go-%d", count)
		if write(client, collection, name) == http.StatusUnauthorized {
			refused++
			continue
		}
		for <-seen != name {
		}
		count++
	}
}

func write(client *http.Client, collection, name string) int {
	wanted := configMap{}
	wanted.Metadata.Name = name
	body, err := json.Marshal(wanted)
	if err != nil {
		fail(err)
	}
	response, err := client.Post(collection, "application/json", bytes.NewReader(body))
	if err != nil {
		fail(err)
	}
	defer response.Body.Close()
	return response.StatusCode
}

// The program fails if this stream ends: it opens no other.
func watch(client *http.Client, collection string, seen chan<- string) {
	response, err := client.Get(collection + "?watch=1&timeoutSeconds=86400")
	if err != nil {
		fail(err)
	}
	defer response.Body.Close()
	for events := json.NewDecoder(response.Body); ; {
		var event struct{ Object configMap }
		if err := events.Decode(&event); err != nil {
			fail(fmt.Errorf("the watch was cut: %w", err))
		}
		seen <- event.Object.Metadata.Name
	}
}
