package embeddedpg

import (
	"cmp"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// unprivileged are the candidates for PostgreSQL's user if the platform runs as root, as which PostgreSQL refuses to
// run.
var unprivileged = []string{"postgres", "nobody"}

// account is the user that runs PostgreSQL and owns its files.
type account struct {
	name     string
	uid, gid int
	dropped  bool // the platform is root and PostgreSQL is not
}

// chooseAccount returns the current user; for root an unprivileged one: the owner of existing data, if there is any.
func chooseAccount(data string) (account, error) {
	if os.Geteuid() != 0 {
		return account{name: userNameOf(os.Geteuid()), uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	var candidates []account
	for _, name := range unprivileged {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errU := strconv.Atoi(u.Uid)
		gid, errG := strconv.Atoi(u.Gid)
		if errU == nil && errG == nil && uid != 0 {
			candidates = append(candidates, account{name: name, uid: uid, gid: gid, dropped: true})
		}
	}
	if len(candidates) == 0 {
		return account{}, fmt.Errorf("PostgreSQL refuses to run as root, and there is neither a user %q nor %q to run it as", unprivileged[0], unprivileged[1])
	}
	if owner, err := ownerOf(data); err == nil {
		if i := slices.IndexFunc(candidates, func(a account) bool { return a.uid == owner }); i >= 0 {
			return candidates[i], nil
		}
	}
	return candidates[0], nil
}

// identity returns the user and capabilities with which children can enter the folders.
func (a account) identity(folders ...string) (identity, error) {
	if !a.dropped {
		return identity{}, nil
	}
	id := identity{attr: syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}}}
	barrier := ""
	for _, folder := range folders {
		barrier = cmp.Or(barrier, a.barrier(folder))
	}
	if barrier == "" {
		return id, nil
	}
	// The alternative, changing the mode of a foreign folder such as /root, would open it to others.
	if err := passBarriers(&id); err != nil {
		return identity{}, fmt.Errorf("%w: PostgreSQL runs as user %s, who cannot enter %s (%w): set DATA_DIR to a folder that this user can enter",
			ErrDataDir, a.name, barrier, err)
	}
	return id, nil
}

// barrier returns the first folder of path that the account may not enter by owner, group and mode; "" if there is
// none.
func (a account) barrier(path string) string {
	for dir := path; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return dir
		}
		enter := os.FileMode(0o001)
		if owner, ok := info.Sys().(*syscall.Stat_t); ok {
			switch {
			case int(owner.Uid) == a.uid:
				enter = 0o100
			case int(owner.Gid) == a.gid:
				enter = 0o010
			}
		}
		if info.Mode().Perm()&enter == 0 {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
}

func ownerOf(path string) (int, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("the owner of %s is unknown", path)
	}
	return int(stat.Uid), nil
}

// userNameOf returns a user's name for messages.
func userNameOf(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return "with id " + strconv.Itoa(uid)
}
