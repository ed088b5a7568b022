package embeddedpg

import (
	"errors"
	"os/exec"
	"syscall"
)

// capDACOverride is CAP_DAC_OVERRIDE of capabilities(7), which bypasses permission checks on files and folders. It is
// in the default set of containers.
const capDACOverride = 1

// passBarriers gives children the capability to enter every folder, and checks that this process can grant it.
func passBarriers(id *identity) error {
	id.attr.AmbientCaps = []uintptr{capDACOverride}
	attr := id.attr
	trial := exec.Command("/bin/sh", "-c", "exit 0")
	trial.Dir = "/"
	trial.SysProcAttr = &attr
	if err := trial.Run(); errors.Is(err, syscall.EPERM) {
		return errors.New("root lacks the capability CAP_DAC_OVERRIDE")
	} else if err != nil {
		return err
	}
	return nil
}
