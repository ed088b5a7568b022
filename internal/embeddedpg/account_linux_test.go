package embeddedpg

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

func TestStart_RunsPostgreSQLUnprivileged(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	s := mustStart(t, dir)
	for _, pid := range []int{s.Pid(), s.process.watchdog.Process.Pid} {
		if uid := status(t, pid, "Uid"); strings.HasPrefix(uid, "0\t") {
			t.Errorf("process %d runs as root: %s", pid, uid)
		}
		if capabilities := status(t, pid, "CapEff"); capabilities != "0000000000000000" {
			t.Errorf("process %d has capabilities: %s", pid, capabilities)
		}
	}

	// PostgreSQL's user owns its data and the socket's folder; the platform owns the rest.
	server := strings.Fields(status(t, s.Pid(), "Uid"))[0]
	for path, want := range map[string]string{
		dir:                                fmt.Sprint(os.Geteuid()),
		filepath.Join(dir, "lock"):         fmt.Sprint(os.Geteuid()),
		filepath.Join(dir, "run"):          server,
		filepath.Join(dir, "postgres"):     server,
		filepath.Join(dir, "postgres.log"): fmt.Sprint(os.Geteuid()),
	} {
		owner, err := ownerOf(path)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(owner) != want {
			t.Errorf("%s belongs to %d, want %s", path, owner, want)
		}
	}
}

// Such as /root. Only root's server runs as another user, and needs a capability to enter the folder.
func TestStart_WorksInAFolderThatOnlyThePlatformCanEnter(t *testing.T) {
	t.Parallel()
	for name, below := range map[string]string{"socket inside": "data", "socket elsewhere": "data,2"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			private := newDataDir(t)
			if err := os.Mkdir(private, 0o700); err != nil {
				t.Fatal(err)
			}
			s := mustStart(t, filepath.Join(private, below))
			mustExec(t, open(t, s), "CREATE TABLE t (id int)")
			want := "0000000000000000"
			if os.Geteuid() == 0 {
				want = "0000000000000002" // only CAP_DAC_OVERRIDE
			}
			if capabilities := status(t, s.Pid(), "CapEff"); capabilities != want {
				t.Errorf("it has capabilities %s, want %s", capabilities, want)
			}
			mustStop(t, s)
			mustStart(t, filepath.Join(private, below))
		})
	}
}

// Root without that capability, as in a container that dropped it. Any other user needs none: PostgreSQL runs as the
// platform's user.
func TestStart_ReportsAFolderThatPostgreSQLCannotEnter(t *testing.T) {
	t.Parallel()
	private := newDataDir(t)
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		account, err := chooseAccount(private)
		if err != nil {
			t.Fatal(err)
		}
		id, err := account.identity(private)
		if err != nil || id.attr.Credential != nil || id.attr.AmbientCaps != nil {
			t.Errorf("identity: %+v, %v, want the current user's", id, err)
		}
		return
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the thread exits with the goroutine
		if err := dropCapability(capDACOverride); err != nil {
			failed <- err
			return
		}
		_, err := Start(t.Context(), testOptions(filepath.Join(private, "data")))
		failed <- err
	}()
	err := <-failed
	if !errors.Is(err, ErrDataDir) || !strings.Contains(err.Error(), private) || !strings.Contains(err.Error(), "set DATA_DIR") {
		t.Fatalf("Start: %v", err)
	}
	oneSentence(t, err.Error())
}

// dropCapability drops a capability of the current thread.
func dropCapability(number uint) error {
	header := struct{ version, pid uint32 }{version: 0x20080522}
	var sets [2]struct{ effective, permitted, inheritable uint32 }
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CAPGET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets)), 0); errno != 0 {
		return fmt.Errorf("capget: %w", errno)
	}
	sets[0].effective &^= 1 << number
	sets[0].permitted &^= 1 << number
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets)), 0); errno != 0 {
		return fmt.Errorf("capset: %w", errno)
	}
	return nil
}

// status reads a line of /proc/<pid>/status.
func status(t *testing.T, pid int, name string) string {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if value, ok := strings.CutPrefix(line, name+":\t"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no line %s in the status of process %d", name, pid)
	return ""
}
