//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "chaos stops and resumes processes as Linux does; run it there, or in a container")
	os.Exit(2)
}
