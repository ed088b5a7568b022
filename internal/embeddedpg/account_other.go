//go:build unix && !linux

package embeddedpg

import "errors"

// passBarriers fails: only Linux has capabilities.
func passBarriers(*identity) error {
	return errors.New("only Linux can grant this")
}
