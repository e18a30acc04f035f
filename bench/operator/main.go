// Operator is a program for benchmarks, with the two sides of one.
//
// `operator serve` is an API server with many project control planes. `operator work` is an operator on
// multicluster-runtime that works in them: with the provider for milo-discoveryd, or with one that makes the calls of
// Milo's own provider, which can't be had where its module is not published. Both print a line for each thing that a
// benchmark waits for, and answer lines on their standard input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(os.Args) < 2:
		err = fmt.Errorf("say what to do: serve or work")
	case os.Args[1] == "serve":
		err = serve(ctx, os.Args[2:])
	case os.Args[1] == "work":
		err = work(ctx, os.Args[2:])
	default:
		err = fmt.Errorf("no such command: %s", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "operator:", err)
		os.Exit(1)
	}
}

// answer answers each line of the standard input with a line of JSON.
func answer(status func() any) {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		content, err := json.Marshal(status())
		if err != nil {
			panic(err) // of numbers and strings
		}
		fmt.Printf("STATUS %s\n", content)
	}
}
