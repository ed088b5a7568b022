package embeddedpg

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// gate delays the program until its watchdog runs. Without it, the program would be left running if its owner were
// killed in between. exec keeps the process id.
const gate = `read -r go && exec "$@" </dev/null`

// watchdog stops process $1 when its owner has exited, which closes the script's standard input. A line on it means
// that the process itself has exited; its id may then be another process's. INT is PostgreSQL's fast shutdown; QUIT and
// KILL cost a recovery, but no data. $2 is a socket folder to remove, or empty.
const watchdog = `
read -r ended && exit 0
kill -INT "$1"
seconds=0
while kill -0 "$1" 2>/dev/null && [ $seconds -lt 15 ]; do
	sleep 1
	seconds=$((seconds + 1))
	[ $seconds -eq 5 ] && kill -QUIT "$1"
	[ $seconds -eq 10 ] && kill -KILL "$1"
done
[ -z "$2" ] || rm -rf "$2"`

// identity is the user and the capabilities of children; the zero value is the current user.
type identity struct {
	attr syscall.SysProcAttr
}

// child is a program with a watchdog, each in its own session: Ctrl-C in the terminal reaches only the platform, which
// must finish its requests before its database stops.
type child struct {
	cmd           *exec.Cmd
	watchdog      *exec.Cmd
	watchdogInput *os.File // write end of the watchdog's standard input

	exited     chan struct{} // closed when both have ended
	err        error         // of the program; written before exited is closed
	exitReason string        // exit status and last error in the log; likewise
}

// spawn starts a program whose output goes to the log.
func spawn(id identity, log *serverLog, socketDir socketDir, program string, args ...string) (*child, error) {
	log.mark()
	cmd, gateEnd, err := startShell(id, log.file, gate, append([]string{program}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	c := &child{cmd: cmd, exited: make(chan struct{})}
	c.watchdog, c.watchdogInput, err = startShell(id, log.file, watchdog, strconv.Itoa(cmd.Process.Pid), socketDir.temporary())
	if err != nil {
		gateEnd.Close() // without a line, so that the program never runs
		_ = cmd.Wait()
		return nil, fmt.Errorf("start the watchdog of %s: %w", program, err)
	}
	_, err = gateEnd.WriteString("go\n")
	gateEnd.Close()

	go c.wait(log)
	if err != nil {
		<-c.exited
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	return c, nil
}

// startShell starts a script and returns the pipe to its standard input, which no other child inherits.
func startShell(id identity, output *os.File, script string, args ...string) (*exec.Cmd, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	attr := id.attr
	attr.Setsid = true
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, "sh"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, output, output
	cmd.Env = childEnvironment()
	cmd.Dir = "/" // the user may not be allowed to enter the current folder
	cmd.SysProcAttr = &attr
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, nil, err
	}
	return cmd, w, nil
}

// childEnvironment passes on only what programs need to run. The rest of the environment holds the platform's secrets,
// and variables that change PostgreSQL's behaviour or the language of its messages.
func childEnvironment() []string {
	env := []string{"LC_ALL=C"}
	for _, name := range []string{"PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

func (c *child) wait(log *serverLog) {
	c.err = c.cmd.Wait()
	_, _ = c.watchdogInput.WriteString("ended\n") // fails if the watchdog was killed, which does not matter here
	c.watchdogInput.Close()
	_ = c.watchdog.Wait()
	c.exitReason = c.cmd.ProcessState.String()
	if line := log.lastLine(); line != "" {
		c.exitReason += ": " + line
	}
	close(c.exited)
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// signal does nothing if the program has exited.
func (c *child) signal(sig syscall.Signal) { _ = c.cmd.Process.Signal(sig) }

// interrupt stops a program and the children in its process group, and waits for its exit.
func (c *child) interrupt() {
	_ = syscall.Kill(-c.pid(), syscall.SIGINT)
	select {
	case <-c.exited:
	case <-time.After(5 * time.Second):
		_ = syscall.Kill(-c.pid(), syscall.SIGKILL)
		<-c.exited
	}
}
