// Command platform is the Molecule platform: it delivers files and messages to agents that cannot be called because
// they poll, and it has the commands to migrate its database, sweep it and move files between stores.
//
// The package parses flags and environment, prints, and returns exit codes: 0 success, 1 failure, 2 a mistake in the
// command line, 130 interrupted. Everything else is in internal/server and below.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/molecule-ai/platform/internal/config"
)

const description = `Delivers files and messages from the canvas to agents. Files for a poll-mode workspace, which cannot be called,
are staged until the workspace has fetched and acknowledged them.

Without settings it serves on 127.0.0.1:8080 with a private PostgreSQL under ./data. With DATABASE_URL it uses that
database; run 'platform migrate up' first. Every flag can be set by the environment variable shown in parentheses.`

// cli is the command line.
type cli struct {
	config.Settings

	Serve   serveCmd   `cmd:"" default:"1" help:"Serve the platform (the default)."`
	Migrate migrateCmd `cmd:"" help:"Apply or undo the migrations of the database schema."`
	Sweep   sweepCmd   `cmd:"" help:"Delete expired and acknowledged files and old inbox rows once. A running platform does this every SWEEP_INTERVAL."`
	Storage storageCmd `cmd:"" help:"Check the object stores, and move files between them."`
	Ready   readyCmd   `cmd:"" help:"Check whether the platform on ADDR is ready: exit code 0 if it is, 1 if not. For health checks."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

// environment is what commands get besides their flags.
type environment struct {
	ctx    context.Context // the process's context
	stdout io.Writer
	stderr io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the default handler is back: the second one ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: arguments in, exit code out.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	exited := -1
	parser, err := kong.New(&c,
		kong.Name("platform"), kong.Description(description), kong.UsageOnError(), kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
		kong.ValueFormatter(describe),
		kong.ExplicitGroups([]kong.Group{
			{Key: "serving", Title: "Serving"}, {Key: "storing", Title: "Storage"},
			{Key: "access", Title: "Access"}, {Key: "limits", Title: "Limits"}, {Key: "keeping", Title: "Retention and quotas"},
		}),
	)
	if err != nil {
		fmt.Fprintln(stderr, "platform:", err)
		return 2
	}
	command, err := parser.Parse(args)
	if exited >= 0 {
		return exited
	}
	if err != nil {
		fmt.Fprintf(stderr, "platform: %s; see 'platform --help'\n", err)
		return 2
	}
	err = command.Run(&environment{ctx, stdout, stderr}, &c.Settings)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return 130 // 128 + SIGINT; the person who interrupted needs no message
	}
	if err != nil {
		fmt.Fprintln(stderr, "platform:", err)
		return 1
	}
	return 0
}

// describe returns a flag's help with its default and its variable. Kong's own formatter omits the default of a flag
// with a placeholder.
func describe(v *kong.Value) string {
	help := v.Help
	if v.HasDefault && len(v.Tag.Envs) > 0 {
		help += " Default: " + v.Default + "."
	}
	if len(v.Tag.Envs) > 0 {
		help += " ($" + v.Tag.Envs[0] + ")"
	}
	return help
}

// version is set by the Makefile's build; without it, go build's own record is used.
var version string

type versionCmd struct{}

// programVersion is the version of this binary.
func programVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "" {
		return info.Main.Version
	}
	return version
}

// Run prints the version.
func (versionCmd) Run(env *environment) error {
	_, err := fmt.Fprintln(env.stdout, "platform", programVersion(), runtime.Version())
	return err
}

// newLogger returns a logger that writes to w in the configured format, at the configured level.
func newLogger(c config.Config, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// errConfig introduces the list of invalid settings.
var errConfig = errors.New("the configuration is invalid")
