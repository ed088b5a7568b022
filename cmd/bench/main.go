//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/molecule-ai/platform/internal/embeddedpg"
)

// options configure a run.
type options struct {
	binary string
	rounds int
	length time.Duration  // of one measurement
	only   *regexp.Regexp // cases
	growth bool
	churn  int    // rounds of staging and deleting; 0: another benchmark
	stores bool   // compare object stores with PostgreSQL
	s3     string // path of the S3 server's binary; "": no S3
	json   string
	svg    string
	base   string // path of another compiled platform to compare with
	output io.Writer
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == bareCommand {
		fail(serveBare(os.Args[2], os.Args[3]))
		return
	}
	o := options{output: os.Stdout}
	only := flag.String("only", "", "run only the cases whose name matches this regular expression")
	flag.StringVar(&o.binary, "platform", "bin/platform", "path of the compiled platform")
	flag.IntVar(&o.rounds, "rounds", 3, "number of measurements of each case")
	flag.DurationVar(&o.length, "length", 2*time.Second, "duration of one measurement")
	flag.BoolVar(&o.growth, "growth", false, "compare a small database with one of a million rows instead")
	flag.IntVar(&o.churn, "churn", 0, "stage and delete files for this number of rounds instead, and measure the disk space")
	flag.BoolVar(&o.stores, "stores", false, "compare large files in a folder, and in S3 with -s3, with PostgreSQL instead")
	flag.StringVar(&o.s3, "s3", "", "path of the versitygw binary, for -stores")
	flag.StringVar(&o.json, "json", "", "write the figures to this file")
	flag.StringVar(&o.svg, "svg", "", "write a chart of the ratios to this file")
	flag.StringVar(&o.base, "base", "", "path of another compiled platform to compare with")
	flag.Parse()
	var err error
	if o.only, err = regexp.Compile(*only); err != nil || flag.NArg() > 0 || o.rounds < 1 {
		fail(errors.Join(err, errors.New("usage: bench [flags]; see -help")))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	fail(run(ctx, o))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures all cases and prints the report.
func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // as root, PostgreSQL runs as another user
		return err
	}
	s, err := startStack(ctx, filepath.Join(dir, "data"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	p, err := s.startPlatform(ctx, o.binary, embeddedpg.DefaultDatabase)
	if err != nil {
		return err
	}
	if o.churn > 0 {
		return measureChurn(ctx, o, p)
	}
	r := &report{output: o.output}
	switch {
	case o.growth:
		err = r.measureGrowth(ctx, o, s, p)
	case o.stores:
		err = r.measureStores(ctx, o, s, p)
	default:
		err = r.measureAll(ctx, o, s, p)
	}
	if err != nil {
		return err
	}
	r.print()
	if o.json != "" {
		err = r.writeJSON(o.json)
	}
	if o.svg != "" {
		err = errors.Join(err, r.writeSVG(o.svg))
	}
	return err
}
