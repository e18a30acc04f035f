// Milo's API server without the controllers of the milo command, which need further modules.
package main

import (
	"os"

	"github.com/spf13/cobra"
	apiserver "go.miloapis.com/milo/cmd/milo/apiserver"
	"k8s.io/component-base/cli"
)

func main() {
	milo := &cobra.Command{Use: "milo"}
	milo.AddCommand(apiserver.NewCommand())
	os.Exit(cli.Run(milo))
}
