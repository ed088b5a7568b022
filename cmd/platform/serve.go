package main

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"

	"github.com/molecule-ai/platform/internal/config"
	"github.com/molecule-ai/platform/internal/server"
)

type serveCmd struct{}

// Run serves until SIGINT or SIGTERM.
func (serveCmd) Run(env *environment, settings *config.Settings) error {
	c, err := settings.Load()
	if err != nil {
		return fmt.Errorf("%w:\n%w", errConfig, err)
	}
	c.Version = programVersion()
	log := newLogger(c, env.stderr)
	s, err := server.New(env.ctx, c, log)
	if err != nil {
		return err
	}
	greet(env.stdout, c, s)
	return s.Run(env.ctx)
}

// greeting has commands to paste for a first try. It is printed only with the private PostgreSQL: an operator's log
// needs neither a tutorial nor the path of a token.
const greeting = `
The platform is serving on {base}. To try it, paste this into another terminal:

  ADMIN="Authorization: Bearer {token}"

  echo "-- create a poll-mode workspace"
  CREATED=$(curl -s {base}/workspaces -H "$ADMIN" -d '{"name":"laptop","delivery_mode":"poll"}'); echo "$CREATED"
  WORKSPACE=$(echo "$CREATED" | sed 's/.*"id":"\([^"]*\)".*/\1/')
  TOKEN="Authorization: Bearer $(echo "$CREATED" | sed 's/.*"auth_token":"\([^"]*\)".*/\1/')"

  echo "-- upload a file to it, like the canvas"
  echo "hello, laptop" > hello.txt
  curl -s {base}/workspaces/$WORKSPACE/chat/uploads -H "$ADMIN" -F files=@hello.txt; echo

  echo "-- read the inbox, like the workspace"
  INBOX=$(curl -s "{base}/workspaces/$WORKSPACE/activity?type=a2a_receive" -H "$TOKEN"); echo "$INBOX"
  FILE=$(echo "$INBOX" | sed 's/.*"file_id":"\([^"]*\)".*/\1/')

  echo "-- fetch the file and acknowledge it"
  curl -s {base}/workspaces/$WORKSPACE/pending-uploads/$FILE/content -H "$TOKEN"
  curl -s -X POST {base}/workspaces/$WORKSPACE/pending-uploads/$FILE/ack -H "$TOKEN"; echo

{kept} Ctrl-C stops the platform and its PostgreSQL.

`

func greet(w io.Writer, c config.Config, s *server.Server) {
	if !c.Embedded() {
		return
	}
	data, err := filepath.Abs(c.DataDir)
	if err != nil {
		data = c.DataDir
	}
	token, kept := "$(cat "+quote(filepath.Join(data, server.AdminTokenFile))+")", "The data and the admin token are in "+data+"."
	if c.AdminToken != "" {
		// The file may hold a token of an earlier start. A token that was given is not printed: output is often kept.
		token, kept = "${ADMIN_TOKEN:?is not set in this terminal}", "The data are in "+data+"; the admin token is the ADMIN_TOKEN that was given."
	}
	fmt.Fprint(w, strings.NewReplacer("{base}", "http://"+reachable(s.Addr()), "{token}", token, "{kept}", kept).Replace(greeting))
}

// reachable turns a listen address into one that a client on this machine can connect to.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

// quote returns s as one word of a shell command.
func quote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
