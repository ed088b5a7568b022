// Command trycluster runs several replicas of the platform behind HAProxy on one temporary PostgreSQL, to try them by
// hand: `make cluster`. It prints commands to paste. SIGHUP replaces the replicas one after the other. Ctrl-C stops
// everything and removes all data; so does a kill, within seconds. It is not for production.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/molecule-ai/platform/internal/testcluster"
)

// cleaner removes folder $1 when this process has exited, which closes the script's standard input, and PostgreSQL has
// stopped.
const cleaner = `
read -r _
seconds=0
while [ -e "$1/postgres/postgres/postmaster.pid" ] && [ $seconds -lt 20 ]; do
	sleep 1
	seconds=$((seconds + 1))
done
rm -rf "$1"`

func main() {
	o := testcluster.Options{}
	flag.StringVar(&o.Binary, "platform", "bin/platform", "the compiled platform")
	flag.StringVar(&o.Proxy, "proxy", "deploy/proxy/haproxy.cfg", "HAProxy's configuration file")
	flag.StringVar(&o.Addr, "addr", "127.0.0.1:8080", "address and port that HAProxy listens on")
	flag.IntVar(&o.Replicas, "replicas", 3, "number of replicas")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	roll := make(chan os.Signal, 1)
	signal.Notify(roll, syscall.SIGHUP)
	if err := run(ctx, o, roll, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		stop()
		os.Exit(1)
	}
}

// run serves until ctx is done. For every signal of roll it replaces the replicas one after the other.
func run(ctx context.Context, o testcluster.Options, roll <-chan os.Signal, out io.Writer) (err error) {
	if o.Dir, err = testcluster.NewDir(); err != nil {
		return err
	}
	cleanerInput, err := clean(o.Dir)
	if err != nil {
		return errors.Join(err, os.RemoveAll(o.Dir))
	}
	defer cleanerInput.Close()
	secret := make([]byte, 32)
	rand.Read(secret) // never fails
	o.AdminToken = hex.EncodeToString(secret)
	token := filepath.Join(o.Dir, "admin_token")
	if err := os.WriteFile(token, []byte(o.AdminToken+"\n"), 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(o.Dir, "replicas.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	o.Log = log
	o.Env = []string{"PUSH_ALLOW_CIDRS=127.0.0.0/8", "REGISTRATION=open", "LOG_FORMAT=text"}
	c, err := testcluster.Start(ctx, o)
	if err != nil {
		return fmt.Errorf("%w; see the replicas' log, %s", err, log.Name())
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	greet(out, c, token, log.Name())
	for {
		select {
		case <-ctx.Done():
			fmt.Fprintln(out, "stopping")
			return nil
		case <-c.Balancer.Done():
			return errors.New("HAProxy has exited; see its log, " + log.Name())
		case <-c.Postgres.Done():
			return c.Postgres.Err()
		case <-roll:
			fmt.Fprintln(out, "replacing the replicas, one after the other")
			if err := c.Roll(ctx, o.Binary); err != nil {
				return err
			}
			fmt.Fprintln(out, "replaced:", pids(c))
		}
	}
}

// clean starts the cleaner, which runs when the returned pipe is closed.
func clean(dir string) (io.Closer, error) {
	cmd := exec.Command("/bin/sh", "-c", cleaner, "sh", dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C must not reach it
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return stdin, cmd.Start()
}

const greeting = `
{n} replicas are serving on {base}, behind HAProxy, with one PostgreSQL. To try them, paste this into another terminal:

  ADMIN="Authorization: Bearer $(cat {token})"

  echo "-- create a poll-mode workspace"
  CREATED=$(curl -s {base}/workspaces -H "$ADMIN" -d '{"name":"laptop","delivery_mode":"poll"}'); echo "$CREATED"
  WORKSPACE=$(echo "$CREATED" | sed 's/.*"id":"\([^"]*\)".*/\1/')
  TOKEN="Authorization: Bearer $(echo "$CREATED" | sed 's/.*"auth_token":"\([^"]*\)".*/\1/')"

  echo "-- upload to the first replica, poll the second, fetch from the third, acknowledge through HAProxy"
  echo "hello, laptop" > hello.txt
  curl -s {first}/workspaces/$WORKSPACE/chat/uploads -H "$ADMIN" -F files=@hello.txt; echo
  INBOX=$(curl -s "{second}/workspaces/$WORKSPACE/activity?type=a2a_receive" -H "$TOKEN"); echo "$INBOX"
  FILE=$(echo "$INBOX" | sed 's/.*"file_id":"\([^"]*\)".*/\1/')
  curl -s {third}/workspaces/$WORKSPACE/pending-uploads/$FILE/content -H "$TOKEN"
  curl -s -X POST {base}/workspaces/$WORKSPACE/pending-uploads/$FILE/ack -H "$TOKEN"; echo

  make e2e BASE_URL={base} ADMIN_TOKEN=$(cat {token})   # test every kind of file
  kill -HUP {pid}                                       # replace the replicas one after the other with the current bin/platform
  kill -STOP {victim}; sleep 5; kill -CONT {victim}             # freeze a replica

Replicas: {pids}. Their log is {log}. Ctrl-C stops everything and removes all data.

`

func greet(out io.Writer, c *testcluster.Cluster, token, log string) {
	of := func(i int) *testcluster.Replica { return c.Replicas[i%len(c.Replicas)] }
	fmt.Fprint(out, strings.NewReplacer(
		"{n}", fmt.Sprint(len(c.Replicas)), "{base}", c.URL, "{token}", token, "{log}", log, "{pid}", fmt.Sprint(os.Getpid()),
		"{first}", of(0).URL(), "{second}", of(1).URL(), "{third}", of(2).URL(), "{victim}", fmt.Sprint(of(0).Pid()), "{pids}", pids(c),
	).Replace(greeting))
}

func pids(c *testcluster.Cluster) string {
	var all []string
	for _, r := range c.Replicas {
		all = append(all, fmt.Sprintf("%s %s (process %d)", r.Name, r.Addr, r.Pid()))
	}
	return strings.Join(all, ", ")
}
