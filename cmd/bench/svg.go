//go:build linux

package main

import (
	"fmt"
	"html"
	"os"
	"strings"
)

const (
	svgWidth, svgBar, svgGap = 900, 14, 6
	svgLeft, svgScale        = 190, 600 // x of a ratio of 0, and the distance to a ratio of 1
)

// writeSVG draws each case's ratio as a bar, the range over the rounds as a line, and the target as a tick.
func (r *report) writeSVG(name string) error {
	var b strings.Builder
	row, x := 0, func(ratio float64) float64 { return svgLeft + svgScale*min(ratio, 1.15) }
	for _, f := range r.Findings {
		if f.Limit == nil {
			continue
		}
		middle, lowest, highest := f.ratio(f.Limit)
		y := 40 + row*(svgBar+svgGap)
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, svgLeft-8, y+svgBar-3, html.EscapeString(f.Case))
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="#4878a8"/>`, svgLeft, y, x(middle)-svgLeft, svgBar)
		fmt.Fprintf(&b, `<path d="M%.1f %dH%.1f" stroke="#222"/>`, x(lowest), y+svgBar/2, x(highest))
		if f.target > 0 {
			fmt.Fprintf(&b, `<path d="M%.1f %dv%d" stroke="#c03030" stroke-width="2"/>`, x(f.target), y-2, svgBar+4)
		}
		fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\">%.2f</text>\n", svgWidth-60, y+svgBar-3, middle)
		row++
	}
	height := 60 + row*(svgBar+svgGap)
	var axis strings.Builder
	for _, ratio := range []float64{0, 0.25, 0.5, 0.75, 1} {
		fmt.Fprintf(&axis, `<path d="M%.1f 30v%d" stroke="#ddd"/><text x="%.1f" y="24" text-anchor="middle">%g</text>`, x(ratio), height-40, x(ratio), ratio)
	}
	svg := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11"><rect width="100%%" height="100%%" fill="#fff"/>`+
		`<text x="8" y="14" font-weight="bold">Rate through the platform, of PostgreSQL's own (1 is the limit; red: the target)</text>%s
%s</svg>
`, svgWidth, height, axis.String(), b.String())
	return os.WriteFile(name, []byte(svg), 0o644) // not secret
}
