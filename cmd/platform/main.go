// Command platform serves the Molecule platform, which hands files and messages to agents
// that nobody can call, and migrates its database.
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

const description = `Hands files from the canvas to agents that nobody can call: it stages what is uploaded to a poll-mode
workspace until the workspace fetches and acknowledges it.

Without settings it serves on 127.0.0.1:8080 with a private PostgreSQL under ./data. With DATABASE_URL it uses that
database, which 'platform migrate up' prepares. Every flag can be given as the environment variable beside it.`

// cli is the command line.
type cli struct {
	config.Settings

	Serve   serveCmd   `cmd:"" default:"1" help:"Serve the platform (the default)."`
	Migrate migrateCmd `cmd:"" help:"Bring the database to this platform's schema, or back."`
	Sweep   sweepCmd   `cmd:"" help:"Delete what is over, once, as the platform does by itself all the time."`
	Storage storageCmd `cmd:"" help:"Look after the stores that have the bytes of files."`
	Ready   readyCmd   `cmd:"" help:"Ask the platform on ADDR whether it is ready; the exit code tells."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

// environment is what commands get beside their flags.
type environment struct {
	ctx    context.Context //nolint:containedctx // it is the process's
	stdout io.Writer
	stderr io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The second signal finds the default again, and ends the process at once.
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
			{Key: "serving", Title: "Serving"}, {Key: "storing", Title: "Storing"},
			{Key: "access", Title: "Access"}, {Key: "limits", Title: "Limits"}, {Key: "keeping", Title: "Keeping"},
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
		return 130 // interrupted before it was done; whoever did it knows
	}
	if err != nil {
		fmt.Fprintln(stderr, "platform:", err)
		return 1
	}
	return 0
}

// describe is a flag's help with its default and its variable. Kong's own leaves out the
// default of a flag that has a placeholder.
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

// version is set by the Makefile's build; another one has only what go build recorded.
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

// newLogger writes lines to w as the configuration has it.
func newLogger(c config.Config, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// errConfig introduces the list of all that is wrong with the configuration.
var errConfig = errors.New("the configuration is not usable")
