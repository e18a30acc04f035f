// Operator is a program for benchmarks: an API server, and an operator that works on it.
//
// `operator serve` is an API server with many project control planes. `operator work` is an operator on
// multicluster-runtime that works in them: with the provider for milo-discoveryd, or with one that makes the same calls
// as Milo's own provider, whose module is not published. `operator follow` reads objects of all of them. All print a line for each state that a benchmark waits for,
// and their status for each line on standard input.
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

const goroutines = "goroutines" // the key of their number in each status

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(os.Args) < 2:
		err = fmt.Errorf("no command: use serve, work or follow")
	case os.Args[1] == "serve":
		err = serve(ctx, os.Args[2:])
	case os.Args[1] == "work":
		err = work(ctx, os.Args[2:])
	case os.Args[1] == "follow":
		err = follow(ctx, os.Args[2:])
	default:
		err = fmt.Errorf("unknown command %q: use serve, work or follow", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "operator:", err)
		os.Exit(1)
	}
}

// answer prints the status, as a line of JSON, for each line on standard input.
func answer(status func() any) {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		content, err := json.Marshal(status())
		if err != nil {
			panic(err) // cannot fail: the status has only numbers and strings
		}
		fmt.Printf("STATUS %s\n", content)
	}
}
