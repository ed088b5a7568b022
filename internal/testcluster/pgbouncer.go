package testcluster

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lib/pq"
)

// PgBouncer is a running PgBouncer in transaction mode.
type PgBouncer struct {
	*Process
	DatabaseURL string // leads through PgBouncer
}

// StartPgBouncer starts PgBouncer with at most so many sessions, in front of the PostgreSQL of dsn, which must name a
// Unix socket. Its configuration is that at path, plus settings. It writes its files to dir.
func StartPgBouncer(path, dir, dsn string, sessions int, log io.Writer, settings ...string) (*PgBouncer, error) {
	program, err := find("pgbouncer")
	if err != nil {
		return nil, err
	}
	c, err := pq.NewConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	addr, err := FreeAddr()
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(addr) // FreeAddr returns a valid address
	config := string(text)
	for _, edit := range []struct{ find, replace string }{
		{`(?m)^platform = host=\S+ port=\S+ dbname=\S+`, fmt.Sprintf("platform = host=%s port=%d dbname=%s user=%s", c.Host, c.Port, c.Database, c.User)},
		{`(?m)^listen_port = .*$`, "listen_port = " + port + "\nunix_socket_dir ="},
		{`(?m)^auth_type = .*$`, "auth_type = any"},
		{`(?m)^auth_file = .*\n`, ""},
		{`(?m)^default_pool_size = .*$`, "default_pool_size = " + strconv.Itoa(sessions)},
	} {
		pattern := regexp.MustCompile(edit.find)
		if len(pattern.FindAllString(config, -1)) != 1 {
			return nil, fmt.Errorf("cluster: pgbouncer.ini must have exactly one line %s", edit.find)
		}
		config = pattern.ReplaceAllLiteralString(config, edit.replace)
	}
	config += strings.Join(settings, "\n") + "\n"
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	args := []string{file}
	if os.Geteuid() == 0 { // PgBouncer refuses to run as root, and only PostgreSQL's user can open the socket
		name, err := ownerOf(c.Host)
		if err != nil {
			return nil, err
		}
		args = append([]string{"-u", name}, args...)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	process, err := startProcess(cmd)
	if err != nil {
		return nil, err
	}
	b := &PgBouncer{process, "postgres://" + c.User + "@" + addr + "/platform?sslmode=disable"}
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(pollInterval) {
		if conn, err := net.Dial("tcp", addr); err == nil {
			return b, conn.Close()
		}
		select {
		case <-b.Done():
			return nil, errors.New("cluster: PgBouncer has exited; see its log")
		default:
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("cluster: PgBouncer does not listen after %s", startTimeout), b.Close())
		}
	}
}

// Close stops PgBouncer at once.
func (b *PgBouncer) Close() error { return b.stop(syscall.SIGTERM) }

// ownerOf returns the name of a folder's owner.
func ownerOf(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("cluster: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("cluster: the owner of %s is unknown", path)
	}
	owner, err := user.LookupId(strconv.Itoa(int(stat.Uid)))
	if err != nil {
		return "", fmt.Errorf("cluster: %w", err)
	}
	return owner.Username, nil
}
