package embeddedpg

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// gate holds a program back until its watchdog runs, so that there is no moment in which the
// owner can be killed and the program stays. It becomes the program: the process id remains.
const gate = `read -r go && exec "$@" </dev/null`

// watchdog ends process $1 when the owner is gone, which closes its standard input. A line
// instead says that the process has ended, and that its id may mean another one by now.
// INT lets PostgreSQL shut down in order; QUIT and KILL cost a recovery, but no data. $2 is a
// socket folder to remove, or empty.
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

// identity is what the children run as; the zero value is the current user.
type identity struct {
	attr syscall.SysProcAttr
}

// child is a program under a watchdog, both in sessions of their own: a Ctrl-C in the
// terminal reaches only the platform, which has work to finish before its database goes.
type child struct {
	cmd           *exec.Cmd
	watchdog      *exec.Cmd
	watchdogInput *os.File // the write end of the watchdog's standard input

	exited     chan struct{} // closed when both have ended
	err        error         // of the program; written before exited is closed
	exitReason string        // how it ended and what it said last; likewise
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
		gateEnd.Close() // unopened: the program never runs
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

// startShell runs a script and returns the pipe to its standard input, which no other child
// inherits.
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
	cmd.Dir = "/" // the current one may be out of the user's reach
	cmd.SysProcAttr = &attr
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, nil, err
	}
	return cmd, w, nil
}

// childEnvironment passes on what programs need to run at all. The rest holds secrets of the
// platform, and variables that change PostgreSQL's behaviour or the language of its messages.
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
	_, _ = c.watchdogInput.WriteString("ended\n") // fails if the watchdog was killed; nothing to do then
	c.watchdogInput.Close()
	_ = c.watchdog.Wait()
	c.exitReason = c.cmd.ProcessState.String()
	if line := log.lastLine(); line != "" {
		c.exitReason += ": " + line
	}
	close(c.exited)
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// signal does nothing if the program has ended.
func (c *child) signal(sig syscall.Signal) { _ = c.cmd.Process.Signal(sig) }

// interrupt ends a program together with the children of its own that share its group, and
// returns when it is gone.
func (c *child) interrupt() {
	_ = syscall.Kill(-c.pid(), syscall.SIGINT)
	select {
	case <-c.exited:
	case <-time.After(5 * time.Second):
		_ = syscall.Kill(-c.pid(), syscall.SIGKILL)
		<-c.exited
	}
}
