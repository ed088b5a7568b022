package internal

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

const (
	maxDocWords   = 2000
	maxDocColumns = 120
)

var (
	docHeading    = regexp.MustCompile(`^(#{1,6}) +(.+?) *$`)
	docLink       = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	docInlineCode = regexp.MustCompile("`[^`]*`")
	docEntry      = regexp.MustCompile(`^ *[-*] \[[^\]]+\]\(#([^)]+)\)`)
	docExplicit   = regexp.MustCompile(`<a (?:id|name)="([^"]+)"`)
)

var update = flag.Bool("update", false, "write the picture of the layers into docs/architecture.md")

// A doc is a Markdown file, read line by line as far as these tests need it. What a program writes between two comments
// may have long lines, as tables and code may.
type doc struct {
	words    int
	sections []string // anchors of the headings of level 2, in order
	contents []string // anchors that the contents list names, in order
	anchors  map[string]bool
	links    []string
	tooLong  []int // numbers of lines
}

// readDoc reads Markdown. The contents list is the first list of links to headings of the same file, before the first
// section; a heading "Contents" above it is not a section.
func readDoc(text string) doc {
	d := doc{words: len(strings.Fields(text)), anchors: map[string]bool{}}
	seen := map[string]int{}
	code, generated := false, false
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			code = !code
			continue
		}
		if code || strings.HasPrefix(line, "    ") && !strings.HasPrefix(strings.TrimSpace(line), "- ") {
			continue
		}
		if strings.HasPrefix(line, "<!-- ") {
			generated = !strings.HasPrefix(line, "<!-- end")
		}
		if len([]rune(line)) > maxDocColumns && !generated && !strings.HasPrefix(line, "|") {
			d.tooLong = append(d.tooLong, i+1)
		}
		for _, anchor := range docExplicit.FindAllStringSubmatch(line, -1) {
			d.anchors[anchor[1]] = true
		}
		if heading := docHeading.FindStringSubmatch(line); heading != nil {
			anchor := headingAnchor(heading[2])
			if n := seen[anchor]; n > 0 {
				seen[anchor]++
				anchor = fmt.Sprintf("%s-%d", anchor, n)
			} else {
				seen[anchor] = 1
			}
			d.anchors[anchor] = true
			if len(heading[1]) == 2 && anchor != "contents" {
				d.sections = append(d.sections, anchor)
			}
		}
		if entry := docEntry.FindStringSubmatch(line); entry != nil && len(d.sections) == 0 {
			d.contents = append(d.contents, entry[1])
		}
		for _, link := range docLink.FindAllStringSubmatch(docInlineCode.ReplaceAllString(line, ""), -1) {
			d.links = append(d.links, link[1])
		}
	}
	return d
}

// headingAnchor is the anchor that GitHub gives a heading.
func headingAnchor(heading string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(heading) {
		switch {
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			b.WriteRune(r)
		case r == ' ':
			b.WriteByte('-')
		}
	}
	return b.String()
}

// shape returns a sentence for each rule that a file of docs/ breaks.
func (d doc) shape() []string {
	var wrong []string
	var listed []string
	for _, anchor := range d.contents {
		if !d.anchors[anchor] {
			wrong = append(wrong, fmt.Sprintf("the contents list leads to #%s, and there is no such heading", anchor))
		}
		if slices.Contains(d.sections, anchor) {
			listed = append(listed, anchor)
		}
	}
	if len(d.contents) == 0 {
		wrong = append(wrong, "there is no contents list before the first section")
	} else if !slices.Equal(listed, d.sections) {
		wrong = append(wrong, fmt.Sprintf("the contents list has the sections %q; the file has %q", listed, d.sections))
	}
	if d.words > maxDocWords {
		wrong = append(wrong, fmt.Sprintf("%d words; at most %d. Split it, or shorten it", d.words, maxDocWords))
	}
	return append(wrong, d.wrapping()...)
}

func (d doc) wrapping() []string {
	var wrong []string
	for _, n := range d.tooLong {
		wrong = append(wrong, fmt.Sprintf("line %d is longer than %d characters", n, maxDocColumns))
	}
	return wrong
}

// broken returns a sentence for each relative link of the file name, in root, that leads nowhere.
func (d doc) broken(root, name string) []string {
	var wrong []string
	for _, link := range d.links {
		if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
			continue
		}
		path, anchor, _ := strings.Cut(link, "#")
		target := d
		if path != "" {
			file := filepath.Join(root, filepath.Dir(name), path)
			if _, err := os.Stat(file); err != nil {
				wrong = append(wrong, fmt.Sprintf("the link %s leads to no file", link))
				continue
			}
			if anchor == "" {
				continue
			}
			raw, err := os.ReadFile(file)
			if err != nil {
				wrong = append(wrong, fmt.Sprintf("the link %s leads to what is not a file", link))
				continue
			}
			target = readDoc(string(raw))
		}
		if !target.anchors[anchor] {
			wrong = append(wrong, fmt.Sprintf("the link %s leads to no heading", link))
		}
	}
	return wrong
}

// Planted: a section without its line in the contents list, a renamed heading, a line of 130 characters, 2,001 words,
// a link to a file that was deleted, a link to a heading of another file that was renamed.
func TestDocs_AreShortWrappedAndLinked(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 11 {
		t.Fatalf("only %d files in docs/", len(files))
	}
	for _, file := range append(files, "../README.md", "../CONTRIBUTING.md", "../SECURITY.md", "../CHANGELOG.md") {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		name := strings.TrimPrefix(filepath.ToSlash(file), "../")
		d := readDoc(string(raw))
		wrong := d.wrapping()
		if strings.HasPrefix(name, "docs/") {
			wrong = d.shape()
		}
		for _, sentence := range append(wrong, d.broken("..", name)...) {
			t.Errorf("%s: %s", name, sentence)
		}
	}
}

func TestDocs_EachViolationIsNamed(t *testing.T) {
	t.Parallel()
	const good = "# T\n\n- [One thing](#one-thing)\n- [Two](#two)\n\n## One thing\n\n[two](#two), `[x](y)`\n\n## Two\n\n    [code](nowhere)\n"
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "other.md"), []byte("# O\n\n## \"Here\", twice & more\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all := func(text string) []string {
		d := readDoc(text)
		return append(d.shape(), d.broken(root, "a.md")...)
	}
	if got := all(good + "\n[o](other.md#here-twice--more), [f](other.md), [w](https://example.org/x)\n"); len(got) != 0 {
		t.Errorf("a good file: %q", got)
	}
	for name, c := range map[string]struct{ text, want string }{
		"no contents":        {"# T\n\n## One\n", "there is no contents list"},
		"list too late":      {"# T\n\n## One\n\n- [One](#one)\n", "there is no contents list"},
		"section missing":    {good + "\n## Three\n", `the file has ["one-thing" "two" "three"]`},
		"order":              {strings.Replace(good, "- [One thing](#one-thing)\n- [Two](#two)", "- [Two](#two)\n- [One thing](#one-thing)", 1), "the contents list has the sections"},
		"entry leads away":   {strings.Replace(good, "(#two)\n", "(#too)\n", 1), "leads to #too"},
		"words":              {good + strings.Repeat("word\n", maxDocWords), "words; at most 2000"},
		"line":               {good + strings.Repeat("x", maxDocColumns+1) + "\n", "is longer than 120"},
		"no file":            {good + "[x](gone.md)\n", "leads to no file"},
		"no heading":         {good + "[x](#gone)\n", "leads to no heading"},
		"no heading there":   {good + "[x](other.md#gone)\n", "leads to no heading"},
		"anchor of a folder": {good + "[x](.#gone)\n", "is not a file"},
	} {
		if got := all(c.text); len(got) == 0 || !strings.Contains(strings.Join(got, "\n"), c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := readDoc("| " + strings.Repeat("x", 200) + " |\n\n    " + strings.Repeat("x", 200) + "\n\n```\n" + strings.Repeat("x", 200) + "\n```\n").tooLong; len(got) != 0 {
		t.Errorf("tables and code: lines %v", got)
	}
}

const (
	architecturePath = "../docs/architecture.md"
	layersBegin      = "<!-- layers, by go test ./internal -run Docs -update -->\n"
	layersEnd        = "<!-- end -->\n"
)

// layersPicture draws layers as docs/architecture.md has them, the top first.
func layersPicture() string {
	var b strings.Builder
	for i, names := range slices.Backward(layers) {
		line := fmt.Sprintf("    %d ", i)
		for _, name := range slices.Sorted(slices.Values(names)) {
			name = strings.TrimPrefix(name, "internal/")
			if len(line)+len(name) > 100 {
				b.WriteString(strings.TrimRight(line, " ") + "\n")
				line = "      "
			}
			line += " " + name
		}
		b.WriteString(line + "\n")
	}
	return "\n" + b.String() + "\n"
}

// Catches: a package that is added, moved or removed in layers, while docs/architecture.md draws the old order.
func TestDocs_ThePictureIsThatOfTheLayers(t *testing.T) {
	raw, err := os.ReadFile(architecturePath)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begun := strings.Cut(string(raw), layersBegin)
	got, after, ended := strings.Cut(rest, layersEnd)
	if !begun || !ended {
		t.Fatalf("docs/architecture.md has no part between %q and %q", layersBegin, layersEnd)
	}
	want := layersPicture()
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("docs/architecture.md is out of date; run go test ./internal -run Docs -update. It should have:\n%s", want)
	}
	if err := os.WriteFile(architecturePath, []byte(before+layersBegin+want+layersEnd+after), 0o644); err != nil { // a page to read
		t.Fatal(err)
	}
}

// Planted: an alert without its **Check.**.
func TestDocs_EveryEntryOfTheRunbookIsComplete(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	entries := strings.Split(string(raw), "\n### ")[1:]
	if len(entries) < 20 {
		t.Errorf("only %d entries", len(entries))
	}
	for _, entry := range entries {
		name, text, _ := strings.Cut(entry, "\n")
		for _, part := range []string{"\n**Meaning.** ", "\n**Check.** ", "\n**Do.** "} {
			if strings.Count(text, part) != 1 {
				t.Errorf("%s: %d times %q", name, strings.Count(text, part), strings.TrimSpace(part))
			}
		}
	}
}

// A reference is docs/page.md in code, or docs/page.md, "Section", or .../docs/page.md#anchor.
var docReference = regexp.MustCompile(`\bdocs/([a-z-]+\.md)(?:#([a-z0-9-]+)|, \\?"([^"\\]+)\\?")?`)

// brokenReferences returns a sentence for each reference in text to a page or a section that does not exist.
func brokenReferences(docs, text string) []string {
	var wrong []string
	for _, r := range docReference.FindAllStringSubmatch(text, -1) {
		raw, err := os.ReadFile(filepath.Join(docs, r[1]))
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: there is no such page", r[0]))
			continue
		}
		anchor := r[2]
		if r[3] != "" {
			anchor = headingAnchor(r[3])
		}
		if anchor != "" && !readDoc(string(raw)).anchors[anchor] {
			wrong = append(wrong, fmt.Sprintf("%s: there is no such section", r[0]))
		}
	}
	return wrong
}

// Error messages, alerts and comments send people to a page. Planted: the page of pooler.go's advice before it moved.
func TestDocs_WhatCodeRefersToExists(t *testing.T) {
	t.Parallel()
	found := 0
	for _, root := range []string{"../cmd", "../internal", "../deploy", "../migrations", "../workspace", "../Makefile"} {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || filepath.Base(path) == "docs_test.go" || strings.HasSuffix(path, ".pyc") {
				return err
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			found += len(docReference.FindAll(raw, -1))
			for _, sentence := range brokenReferences("../docs", string(raw)) {
				t.Errorf("%s refers to %s", path, sentence)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 20 {
		t.Errorf("only %d references", found)
	}
	for text, want := range map[string]string{
		`docs/replicas.md, "PgBouncer"`: "", `docs/replicas.md, \"PgBouncer\"`: "", "docs/runbook.md#uploads-hang": "", "see docs/limits.md.": "",
		`docs/operations.md, "PgBouncer"`: "no such section", "docs/runbook.md#gone": "no such section", "docs/development.md": "no such page",
	} {
		if got := strings.Join(brokenReferences("../docs", text), ""); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q", text, got)
		}
	}
}
