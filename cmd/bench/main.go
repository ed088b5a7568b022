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

// options are what a run goes by.
type options struct {
	binary string
	rounds int
	length time.Duration  // of one measurement
	only   *regexp.Regexp // cases
	growth bool
	churn  int    // rounds
	stores bool   // files in stores beside those in PostgreSQL
	s3     string // the S3 server's binary; "": none
	json   string
	svg    string
	base   string // another binary
	output io.Writer
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == bareCommand {
		fail(serveBare(os.Args[2], os.Args[3]))
		return
	}
	o := options{output: os.Stdout}
	only := flag.String("only", "", "run only the cases whose name matches this regular expression")
	flag.StringVar(&o.binary, "platform", "bin/platform", "the compiled platform")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each case is measured")
	flag.DurationVar(&o.length, "length", 2*time.Second, "how long one measurement takes")
	flag.BoolVar(&o.growth, "growth", false, "measure an empty database beside one with a million rows instead")
	flag.IntVar(&o.churn, "churn", 0, "measure so many rounds of files that come and go instead, and what they take on disk")
	flag.BoolVar(&o.stores, "stores", false, "measure large files in a folder, and in S3 if -s3 is given, beside PostgreSQL instead")
	flag.StringVar(&o.s3, "s3", "", "the binary of versitygw, for -stores")
	flag.StringVar(&o.json, "json", "", "write the figures to this file")
	flag.StringVar(&o.svg, "svg", "", "draw the ratios into this file")
	flag.StringVar(&o.base, "base", "", "another compiled platform, to be measured beside")
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

// run measures all cases and reports them.
func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL runs as somebody else if this is root
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
