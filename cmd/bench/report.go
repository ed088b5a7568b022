//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// The figures besides the rate for which a case may have a target, which is a maximum.
const (
	peakMiB   = "peak MiB"
	firstByte = "first byte / limit"
	medianMS  = "p50 ms"
	tailMS    = "p99 ms"
	tailRatio = "p99 / alone"
)

// A caseResult holds the results of a case, one per round.
type caseResult struct {
	Case     string   `json:"case"`
	Bytes    int      `json:"bytes_per_operation,omitempty"`
	Platform []result `json:"platform"`
	Limit    []result `json:"limit,omitempty"`
	Base     []result `json:"base,omitempty"` // another platform

	target  float64
	targets map[string]float64
}

type report struct {
	Findings []*caseResult `json:"cases"`
	output   io.Writer
	limit    string // name of the limit in the table
}

// measureAll measures every case in every round.
func (r *report) measureAll(ctx context.Context, o options, s *stack, p *platform) error {
	var base *platform
	if o.base != "" {
		var err error
		if base, err = s.startPlatform(ctx, o.base, "base"); err != nil {
			return err
		}
	}
	r.limit = "limit"
	cases := slices.DeleteFunc(allCases(), func(c benchCase) bool { return !o.only.MatchString(c.name) })
	for i := range cases {
		r.Findings = append(r.Findings, &caseResult{Case: cases[i].name, Bytes: cases[i].bytes, target: cases[i].target, targets: cases[i].targets})
	}
	for round := range o.rounds {
		for i := range cases {
			c, f := &cases[i], r.Findings[i]
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, o.rounds, c.name)
			if err := c.run(ctx, o, s, p, &f.Platform, &f.Limit); err != nil {
				return err
			}
			if base != nil {
				if err := c.run(ctx, o, s, base, &f.Base, nil); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// run measures one case once, and its limit if limit is not nil.
func (c *benchCase) run(ctx context.Context, o options, s *stack, p *platform, platformResults, limit *[]result) (err error) {
	if c.fresh {
		if err := p.restart(ctx); err != nil {
			return err
		}
	}
	if c.prepare != nil {
		if err := c.prepare(ctx, p); err != nil {
			return fmt.Errorf("%s: prepare: %w", c.name, err)
		}
	}
	sides := []struct {
		op   operation
		into *[]result
	}{{c.platform, platformResults}}
	if c.limit != nil && limit != nil {
		sides = append(sides, struct {
			op   operation
			into *[]result
		}{c.limit, limit})
		if len(*limit)%2 == 1 { // alternate which one is measured first
			slices.Reverse(sides)
		}
	}
	for _, side := range sides {
		measure := func() (result, error) { return c.measure(ctx, s, p, side.op, o.length) }
		if c.beside != nil && side.into == platformResults {
			measure = func() (result, error) { return c.measureBeside(ctx, s, p, o.length) }
		}
		result, err := measure()
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		*side.into = append(*side.into, result)
	}
	if c.cleanup != nil {
		if err := c.cleanup(ctx, p); err != nil {
			return fmt.Errorf("%s: clean up: %w", c.name, err)
		}
	}
	return nil
}

// median returns the median, the lowest and the highest value of a figure over the rounds.
func median(rounds []result, figure func(i int) float64) (middle, lowest, highest float64) {
	values := make([]float64, len(rounds))
	for i := range rounds {
		values[i] = figure(i)
	}
	slices.Sort(values)
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2, values[0], values[len(values)-1]
}

func medianOf(rounds []result, figure func(result) float64) float64 {
	m, _, _ := median(rounds, func(i int) float64 { return figure(rounds[i]) })
	return m
}

// ratio returns the ratio of the platform's rate to another one in the same round.
func (f *caseResult) ratio(to []result) (middle, lowest, highest float64) {
	return median(to, func(i int) float64 { return f.Platform[i].Rate / to[i].Rate })
}

// perGB returns the seconds per GB that the case transferred.
func (f *caseResult) perGB(seconds func(result) float64) float64 {
	return medianOf(f.Platform, func(r result) float64 { return seconds(r) / (float64(r.Operations) * float64(f.Bytes) / 1e9) })
}

// compareTargets returns a sentence for each target: the figure, the target, and whether it was reached.
func (f *caseResult) compareTargets() string {
	var verdicts []string
	say := func(name string, got, want float64, holds bool) {
		word := "reached"
		if !holds {
			word = "MISSED"
		}
		verdicts = append(verdicts, fmt.Sprintf("%s %.3g, target %.3g: %s", name, got, want, word))
	}
	if f.target > 0 {
		got, _, _ := f.ratio(f.Limit)
		say("ratio", got, f.target, got >= f.target)
	}
	for _, name := range []string{peakMiB, firstByte, medianMS, tailMS, tailRatio} {
		want, ok := f.targets[name]
		if !ok {
			continue
		}
		var got float64
		switch name {
		case peakMiB:
			got = medianOf(f.Platform, func(r result) float64 { return r.PeakMiB })
		case firstByte:
			got, _, _ = median(f.Platform, func(i int) float64 { return f.Platform[i].First / f.Limit[i].P50 })
		case medianMS:
			got = medianOf(f.Platform, func(r result) float64 { return r.P50 })
		case tailRatio:
			got, _, _ = median(f.Platform, func(i int) float64 { return f.Platform[i].P99 / f.Limit[i].P99 })
		case tailMS:
			got = medianOf(f.Platform, func(r result) float64 { return r.P99 })
		}
		say(name, got, want, got <= want)
	}
	return strings.Join(verdicts, "; ")
}

// print prints the table.
func (r *report) print() {
	w := tabwriter.NewWriter(r.output, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "case\t/s\tMB/s\t"+r.limit+" /s\tratio\t(spread)\tp50 ms\tp95 ms\tp99 ms\tfirst byte ms\tpeak MiB\tCPU s/GB\tPostgreSQL s/GB\tvs base\t(spread)\t")
	for _, f := range r.Findings {
		rate := medianOf(f.Platform, func(r result) float64 { return r.Rate })
		cells := []string{f.Case, number(rate), "", "", "", ""}
		if f.Bytes > 0 {
			cells[2] = number(rate * float64(f.Bytes) / 1e6)
		}
		if f.Limit != nil {
			cells[3] = number(medianOf(f.Limit, func(r result) float64 { return r.Rate }))
			m, lowest, highest := f.ratio(f.Limit)
			cells[4], cells[5] = fmt.Sprintf("%.2f", m), fmt.Sprintf("%.2f–%.2f", lowest, highest)
		}
		for _, figure := range []func(result) float64{
			func(r result) float64 { return r.P50 }, func(r result) float64 { return r.P95 }, func(r result) float64 { return r.P99 },
			func(r result) float64 { return r.First }, func(r result) float64 { return r.PeakMiB },
		} {
			cells = append(cells, number(medianOf(f.Platform, figure)))
		}
		if f.Bytes >= mib {
			cells = append(cells, number(f.perGB(func(r result) float64 { return r.PlatformS })), number(f.perGB(func(r result) float64 { return r.PostgresS })))
		} else {
			cells = append(cells, "", "")
		}
		if f.Base != nil {
			m, lowest, highest := f.ratio(f.Base)
			cells = append(cells, fmt.Sprintf("%.2f", m), fmt.Sprintf("%.2f–%.2f", lowest, highest))
		}
		fmt.Fprintln(w, strings.Join(cells, "\t")+"\t")
	}
	_ = w.Flush()
	for _, f := range r.Findings {
		if verdict := f.compareTargets(); verdict != "" {
			fmt.Fprintf(r.output, "%s: %s\n", f.Case, verdict)
		}
	}
}

// number formats a figure with about three digits.
func number(x float64) string {
	switch {
	case x == 0:
		return ""
	case x < 10:
		return fmt.Sprintf("%.2f", x)
	case x < 100:
		return fmt.Sprintf("%.1f", x)
	default:
		return fmt.Sprintf("%.0f", x)
	}
}

func (r *report) writeJSON(name string) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(raw, '\n'), 0o644) // not secret
}
