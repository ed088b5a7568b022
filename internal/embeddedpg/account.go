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

// The users that PostgreSQL runs as if the platform is root, which PostgreSQL refuses to be.
var unprivileged = []string{"postgres", "nobody"}

// account is the user that PostgreSQL runs as and that its files belong to.
type account struct {
	name     string
	uid, gid int
	dropped  bool // from root
}

// chooseAccount returns the current user, or for root an unprivileged one: the one that the
// data belongs to, if there is data.
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

// identity returns what children must run as to reach the folders.
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
	// Changing the mode of a folder that is not ours, such as /root, is not for us to do.
	if err := passBarriers(&id); err != nil {
		return identity{}, fmt.Errorf("%w: PostgreSQL, which runs as user %s, cannot enter %s (%w): set DATA_DIR to a place that this user can reach",
			ErrDataDir, a.name, barrier, err)
	}
	return id, nil
}

// barrier returns the first folder on the way to path that the account may not enter, judged
// by owner, group and mode; "" if there is none.
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
		return 0, fmt.Errorf("no owner known for %s", path)
	}
	return int(stat.Uid), nil
}

// userNameOf returns a name for messages.
func userNameOf(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return "with id " + strconv.Itoa(uid)
}
