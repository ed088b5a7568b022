package main

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// releasePages takes the pages of the program's own file out of memory that starting has touched; those
// that are wanted again come back by themselves, from the page cache. The clouds' libraries set themselves
// up all over a file of some 100 MB, so that it is 30 MiB which nobody uses: a third of what uploads may take.
// It is no harm if it fails.
func releasePages() {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		// 00400000-0219c000 r-xp 00000000 fe:00 1234 /path
		fields := strings.SplitN(lines.Text(), " ", 2)
		if len(fields) < 2 || !strings.HasPrefix(fields[1], "r-") || !strings.HasSuffix(fields[1], " "+self) {
			continue // what is written to would be lost
		}
		from, to, _ := strings.Cut(fields[0], "-")
		begin, beginErr := strconv.ParseUint(from, 16, 64)
		end, endErr := strconv.ParseUint(to, 16, 64)
		if beginErr == nil && endErr == nil {
			_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, uintptr(begin), uintptr(end-begin), syscall.MADV_DONTNEED)
		}
	}
}
