package embeddedpg

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// maxLogBytes is the size above which the log is rotated to postgres.log.1 when the server starts.
const maxLogBytes = 8 << 20

// logTail is the number of bytes at the end of the log that are searched for an error.
const logTail = 4 << 10

// serverLog is the file that initdb and the server write to.
type serverLog struct {
	file  *os.File
	start int64 // offset at which the output of the current program begins
}

func openServerLog(dir string) (*serverLog, error) {
	path := logPath(dir)
	if info, err := os.Lstat(path); err == nil && info.Size() > maxLogBytes {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("rotate the log: %w", err)
		}
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	return &serverLog{file: file}, nil
}

func (l *serverLog) close() { l.file.Close() }

// mark makes lastLine ignore what was written before.
func (l *serverLog) mark() {
	if end, err := l.file.Seek(0, io.SeekEnd); err == nil {
		l.start = end
	}
}

// lastLine returns the last error in the log, or else the last line that is not blank; "" if nothing was written.
func (l *serverLog) lastLine() string {
	info, err := l.file.Stat()
	if err != nil {
		return ""
	}
	from := max(l.start, info.Size()-logTail)
	tail := make([]byte, max(0, info.Size()-from))
	if n, err := l.file.ReadAt(tail, from); err != nil && !errors.Is(err, io.EOF) {
		return ""
	} else {
		tail = tail[:n]
	}
	last := ""
	failure := ""
	for line := range strings.Lines(string(tail)) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		last = line
		for _, level := range []string{"FATAL:", "PANIC:", "error:"} {
			if at := strings.Index(line, level); at >= 0 {
				failure = strings.TrimSpace(line[at+len(level):])
			}
		}
	}
	if failure != "" {
		return failure
	}
	return last
}
