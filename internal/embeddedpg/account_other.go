//go:build unix && !linux

package embeddedpg

import "errors"

// passBarriers needs capabilities, which only Linux has.
func passBarriers(*identity) error {
	return errors.New("this system has no way to grant it that")
}
