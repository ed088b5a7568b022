//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "chaos: needs Linux (signals, mounts and /proc); run it there, or in a container")
	os.Exit(2)
}
