package testcluster

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// A State is a server's status in HAProxy.
type State string

// The states that Await is used with.
const (
	Up   State = "UP"
	Down State = "DOWN"
)

// HAProxy is a running HAProxy.
type HAProxy struct {
	*Process
	Addr   string
	socket string
}

// StartHAProxy starts HAProxy on addr, or on a free loopback address if addr is "". Its servers are named replica1 and
// so on; its configuration is that at path. It writes its files to dir.
func StartHAProxy(path, dir, addr string, servers []string, log io.Writer) (*HAProxy, error) {
	program, err := find("haproxy")
	if err != nil {
		return nil, err
	}
	if addr == "" {
		if addr, err = FreeAddr(); err != nil {
			return nil, err
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	b := &HAProxy{Addr: addr, socket: filepath.Join(dir, "haproxy.sock")}
	config, err := b.configure(string(text), servers)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	cmd := exec.Command(program, "-db", "-f", file)
	cmd.Stdout, cmd.Stderr = log, log
	b.Process, err = startProcess(cmd)
	return b, err
}

// configure adapts deploy's configuration to this machine: no TLS, fewer connections, one thread, these servers, and a
// socket that reports their state.
func (b *HAProxy) configure(text string, servers []string) (string, error) {
	var lines strings.Builder
	server := regexp.MustCompile(`(?m)^    server replica1 \S+(.*)$`)
	options := server.FindStringSubmatch(text)
	if options == nil {
		return "", errors.New("cluster: haproxy.cfg has no line for replica1")
	}
	for i, addr := range servers {
		fmt.Fprintf(&lines, "    server replica%d %s%s\n", i+1, addr, options[1])
	}
	text = server.ReplaceAllLiteralString(text, strings.TrimSuffix(lines.String(), "\n"))
	for _, edit := range []struct{ find, replace string }{
		{`(?m)^    bind :80$`, "    bind " + b.Addr},
		{`(?m)^    bind :443 .*\n`, ""},
		{`(?m)^    http-request redirect scheme https .*\n`, ""},
		{`(?m)^    maxconn 32768$`, "    maxconn 2000\n    nbthread 1\n    stats socket " + b.socket + " mode 600 level operator"},
	} {
		pattern := regexp.MustCompile(edit.find)
		if !pattern.MatchString(text) {
			return "", fmt.Errorf("cluster: haproxy.cfg has no line %s", edit.find)
		}
		text = pattern.ReplaceAllLiteralString(text, edit.replace)
	}
	return text, nil
}

// Await returns when a server is in that state.
func (b *HAProxy) Await(ctx context.Context, server string, want State) error {
	for {
		state, err := b.state(server)
		if err == nil && state == want {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cluster: HAProxy reports that %s is %q, %w: %w", server, state, err, ctx.Err())
		case <-b.Done():
			return errors.New("cluster: HAProxy has exited; see its log")
		case <-time.After(pollInterval):
		}
	}
}

// state returns HAProxy's state of a server.
func (b *HAProxy) state(server string) (State, error) {
	conn, err := net.DialTimeout("unix", b.socket, time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(conn, "show stat\n"); err != nil {
		return "", err
	}
	r := csv.NewReader(conn)
	r.FieldsPerRecord = -1
	rows, err := r.ReadAll()
	if err != nil {
		return "", err
	}
	const nameColumn, statusColumn = 1, 17 // of HAProxy's table
	for _, row := range rows {
		if len(row) > statusColumn && row[nameColumn] == server {
			return State(row[statusColumn]), nil
		}
	}
	return "", fmt.Errorf("cluster: HAProxy has no server %s", server)
}

// Close stops HAProxy at once.
func (b *HAProxy) Close() error { return b.stop(syscall.SIGINT) }
