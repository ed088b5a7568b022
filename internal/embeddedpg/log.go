package embeddedpg

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// At the start of the server a log longer than this is put aside as postgres.log.1.
const maxLogBytes = 8 << 20

// How much of the end of the log is searched for the line that explains a failure.
const logTail = 4 << 10

// serverLog is the file that initdb and the server write to.
type serverLog struct {
	file  *os.File
	start int64 // where the output of the current program begins
}

func openServerLog(dir string) (*serverLog, error) {
	path := logPath(dir)
	if info, err := os.Lstat(path); err == nil && info.Size() > maxLogBytes {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("put the old log aside: %w", err)
		}
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	return &serverLog{file: file}, nil
}

func (l *serverLog) close() { l.file.Close() }

// mark makes lastLine look only at what is written from now on.
func (l *serverLog) mark() {
	if end, err := l.file.Seek(0, io.SeekEnd); err == nil {
		l.start = end
	}
}

// lastLine returns the last line that tells of a failure, or else the last line that is not
// blank; "" if nothing was written.
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
