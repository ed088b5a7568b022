package forward

import (
	"errors"
	"net/netip"
	"testing"
)

// deniedRanges has the first and the last address of each denied block, and the
// neighbours outside it where those are globally routable.
var deniedRanges = []struct {
	name        string
	first, last string
	before      string // routable, or empty
	after       string // routable, or empty
}{
	{"this network", "0.0.0.0", "0.255.255.255", "", "1.0.0.0"},
	{"private 10", "10.0.0.0", "10.255.255.255", "9.255.255.255", "11.0.0.0"},
	{"carrier-grade NAT", "100.64.0.0", "100.127.255.255", "100.63.255.255", "100.128.0.0"},
	{"loopback", "127.0.0.0", "127.255.255.255", "126.255.255.255", "128.0.0.0"},
	{"link local", "169.254.0.0", "169.254.255.255", "169.253.255.255", "169.255.0.0"},
	{"cloud metadata", "169.254.169.254", "169.254.169.254", "", ""},
	{"private 172.16", "172.16.0.0", "172.31.255.255", "172.15.255.255", "172.32.0.0"},
	{"protocol assignments", "192.0.0.0", "192.0.0.255", "191.255.255.255", "192.0.1.0"},
	{"documentation 1", "192.0.2.0", "192.0.2.255", "192.0.1.255", "192.0.3.0"},
	{"6to4 relay", "192.88.99.0", "192.88.99.255", "192.88.98.255", "192.88.100.0"},
	{"private 192.168", "192.168.0.0", "192.168.255.255", "192.167.255.255", "192.169.0.0"},
	{"benchmarking", "198.18.0.0", "198.19.255.255", "198.17.255.255", "198.20.0.0"},
	{"documentation 2", "198.51.100.0", "198.51.100.255", "198.51.99.255", "198.51.101.0"},
	{"documentation 3", "203.0.113.0", "203.0.113.255", "203.0.112.255", "203.0.114.0"},
	{"multicast", "224.0.0.0", "239.255.255.255", "223.255.255.255", ""},
	{"reserved", "240.0.0.0", "255.255.255.254", "", ""},
	{"broadcast", "255.255.255.255", "255.255.255.255", "", ""},

	{"unspecified", "::", "::", "", ""},
	{"loopback 6", "::1", "::1", "", ""},
	{"IPv4-compatible", "::0.0.0.2", "::255.255.255.255", "", ""},
	{"IPv4-translated", "::ffff:0:0:0", "::ffff:0:ffff:ffff", "", ""},
	{"NAT64", "64:ff9b::", "64:ff9b::ffff:ffff", "", ""},
	{"local NAT64", "64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "", ""},
	{"discard only", "100::", "100::ffff:ffff:ffff:ffff", "", ""},
	{"below global unicast", "::2:0:0:0", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", ""},
	{"IETF assignments", "2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
		"2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"},
	{"Teredo", "2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "", ""},
	{"ORCHIDv2", "2001:20::", "2001:2f:ffff:ffff:ffff:ffff:ffff:ffff", "", ""},
	{"documentation 6", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
		"2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"},
	{"6to4", "2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
		"2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"},
	{"documentation 7", "3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
		"3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"},
	{"above global unicast", "4000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", ""},
	{"segment routing", "5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", ""},
	{"unique local", "fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", ""},
	{"link local 6", "fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", ""},
	{"site local", "fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", ""},
	{"multicast 6", "ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", ""},
}

// spellings returns the address, and an IPv4 one in its IPv4-mapped form too.
func spellings(s string) []netip.Addr {
	a := netip.MustParseAddr(s)
	if a.Is4() {
		return []netip.Addr{a, netip.AddrFrom16(a.As16())}
	}
	return []netip.Addr{a, a.WithZone("eth0")}
}

func TestGuard_DeniesEachRangeToItsEdges(t *testing.T) {
	t.Parallel()
	g := newGuard(nil)
	for _, tt := range deniedRanges {
		for _, s := range []string{tt.first, tt.last} {
			for _, a := range spellings(s) {
				if err := g.check(a); !errors.Is(err, ErrDenied) {
					t.Errorf("%s: check(%s) = %v, want ErrDenied", tt.name, a, err)
				}
			}
		}
		for _, s := range []string{tt.before, tt.after} {
			if s == "" {
				continue
			}
			for _, a := range spellings(s) {
				if err := g.check(a); err != nil {
					t.Errorf("%s: neighbour %s: %v, want it allowed", tt.name, a, err)
				}
			}
		}
	}
}

func TestGuard_AllowsGlobalAddresses(t *testing.T) {
	t.Parallel()
	g := newGuard(nil)
	for _, s := range []string{"1.1.1.1", "8.8.8.8", "185.199.108.153", "2000::", "2606:4700::1111", "2a00:1450::8a", "3ffe:ffff::1"} {
		for _, a := range spellings(s) {
			if err := g.check(a); err != nil {
				t.Errorf("check(%s) = %v, want it allowed", a, err)
			}
		}
	}
}

func TestGuard_DeniesTheZeroAddress(t *testing.T) {
	t.Parallel()
	if err := newGuard([]netip.Prefix{{}}).check(netip.Addr{}); !errors.Is(err, ErrDenied) {
		t.Errorf("check of the zero address = %v, want ErrDenied", err)
	}
}

func TestGuard_AllowedNetworksOverrideTheLists(t *testing.T) {
	t.Parallel()
	tests := []struct {
		allow          string
		opened, closed []string
	}{
		{"10.1.0.0/16", []string{"10.1.0.0", "10.1.255.255", "::ffff:10.1.2.3"}, []string{"10.0.255.255", "10.2.0.0", "127.0.0.1", "::ffff:10.2.0.0"}},
		{"10.1.2.3/16", []string{"10.1.0.0"}, []string{"10.2.0.0"}}, // host bits set
		{"::ffff:10.1.0.0/112", []string{"10.1.0.0", "::ffff:10.1.255.255"}, []string{"10.2.0.0", "::ffff:10.2.0.0"}},
		{"fd00:1::/32", []string{"fd00:1::1", "fd00:1::1%eth0"}, []string{"fd00:2::1", "fe80::1%eth0"}},
		{"fe80::/10", []string{"fe80::1%eth0"}, []string{"fec0::1"}},
		{"64:ff9b::/96", []string{"64:ff9b::8.8.8.8"}, []string{"64:ff9b:1::1", "127.0.0.1"}},
		{"::/0", []string{"::1"}, []string{"127.0.0.1", "::ffff:127.0.0.1"}}, // all of IPv6 is none of IPv4
		{"0.0.0.0/0", []string{"127.0.0.1"}, []string{"::1", "::127.0.0.1"}},
	}
	for _, tt := range tests {
		g := newGuard([]netip.Prefix{netip.MustParsePrefix(tt.allow)})
		for _, s := range tt.opened {
			if err := g.check(netip.MustParseAddr(s)); err != nil {
				t.Errorf("allow %s: check(%s) = %v, want it allowed", tt.allow, s, err)
			}
		}
		for _, s := range tt.closed {
			if err := g.check(netip.MustParseAddr(s)); !errors.Is(err, ErrDenied) {
				t.Errorf("allow %s: check(%s) = %v, want ErrDenied", tt.allow, s, err)
			}
		}
	}
}
