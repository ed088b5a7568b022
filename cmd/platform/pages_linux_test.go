package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

// Every page of the program's own file is read, so that it is in memory whatever the page cache does. Planted: pages that
// are only read left out, and those that are run. It is not parallel: others would bring pages back.
func TestReleasePages_LetsGoOfThePagesThatAreOnlyRead(t *testing.T) {
	touchOwnPages(t)
	before := inMemory(t, os.Getpid(), "RssFile")
	releasePages()
	if after := inMemory(t, os.Getpid(), "RssFile"); after > before/3 {
		t.Errorf("%.1f MiB of files are in memory, %.1f MiB were", mib(after), mib(before))
	}
}

func touchOwnPages(t *testing.T) {
	t.Helper()
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		if !strings.HasSuffix(lines.Text(), self) {
			continue
		}
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, io.NewSectionReader(memory, from, to-from)); err != nil {
			t.Fatal(err)
		}
	}
}
