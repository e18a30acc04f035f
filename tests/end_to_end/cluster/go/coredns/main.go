// CoreDNS with the plugins that a cluster's DNS needs, and none of its backends at cloud providers.
package main

import (
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/coremain"
)

func main() { coremain.Run() }
