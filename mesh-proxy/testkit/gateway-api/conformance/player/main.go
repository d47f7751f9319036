// Player stands in for what a closed world of network namespaces does not have: kubelets and containers, and somebody
// who gives each Gateway a proxy with an address of its own. Pods are programs in namespaces that are there beforehand.
//
//	player run FILE       the stand-in itself; FILE is what Config says
//	player echo FLAGS     the backend of the mesh tests
//	player client URL     the caller of the mesh tests, with the output that the suite reads
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "player: run, echo or client")
		os.Exit(2)
	}
	var err error
	switch args := os.Args[2:]; os.Args[1] {
	case "run":
		err = run(args)
	case "echo":
		err = serve(args)
	case "client":
		err = client(args)
	default:
		err = fmt.Errorf("%s: not known", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "player:", err)
		os.Exit(1)
	}
}
