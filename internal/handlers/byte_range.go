package handlers

import (
	"math"
	"regexp"
	"strconv"
	"strings"
)

// byteRange is a single range of bytes; either number may be missing.
var byteRange = regexp.MustCompile(`^([0-9]*)[ \t]*-[ \t]*([0-9]*)$`)

// normalRange returns a Range header as http.ServeContent has to see it to answer as RFC 9110, section 14
// requires for a file of size bytes. "" means the whole file.
func normalRange(header string, size int64) string {
	unit, set, ok := strings.Cut(header, "=")
	switch {
	case !ok, !strings.EqualFold(strings.TrimSpace(unit), "bytes"):
		return "" // an unknown unit is ignored
	case size == 0:
		return "" // no range of it exists, and http.ServeContent would send 0 bytes as a part
	case strings.Contains(set, ","):
		// A resumed download needs one range. Several are answered with the whole file, as section 14.2
		// allows: many small ones would multiply the work of a request.
		return ""
	}
	match := byteRange.FindStringSubmatch(strings.TrimSpace(set))
	if match == nil || match[1] == "" && match[2] == "" {
		return "bytes=" + set // malformed; http.ServeContent refuses it
	}
	first, last := clamp(match[1]), clamp(match[2])
	switch {
	case match[1] == "" && last == 0: // the last 0 bytes, which http.ServeContent would send as a part
		return "bytes=" + strconv.FormatInt(size, 10) + "-"
	case match[1] == "":
		return "bytes=-" + strconv.FormatInt(last, 10)
	case match[2] == "":
		return "bytes=" + strconv.FormatInt(first, 10) + "-"
	}
	return "bytes=" + strconv.FormatInt(first, 10) + "-" + strconv.FormatInt(last, 10)
}

// clamp parses decimal digits; a number that is too large is the largest, which is beyond every file.
func clamp(digits string) int64 {
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil && digits != "" {
		return math.MaxInt64
	}
	return n
}
