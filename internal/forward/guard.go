package forward

import (
	"fmt"
	"net/netip"
)

// The lists follow the IANA registries of special-purpose addresses (iana-ipv4-special-registry,
// iana-ipv6-special-registry; RFC 6890, RFC 8190). Reachable exceptions inside a reserved block, such as
// the anycast addresses in 192.0.0.0/24 and 2001::/23, are denied with their block: no workspace has
// such an address.
var (
	// denied4 has the IPv4 blocks that are not globally routable.
	denied4 = prefixes(
		"0.0.0.0/8",       // this network, RFC 791
		"10.0.0.0/8",      // private, RFC 1918
		"100.64.0.0/10",   // carrier-grade NAT, RFC 6598
		"127.0.0.0/8",     // loopback, RFC 1122
		"169.254.0.0/16",  // link local, and clouds' metadata, RFC 3927
		"172.16.0.0/12",   // private, RFC 1918
		"192.0.0.0/24",    // IETF protocol assignments, RFC 6890
		"192.0.2.0/24",    // documentation, RFC 5737
		"192.88.99.0/24",  // 6to4 relay anycast, RFC 7526
		"192.168.0.0/16",  // private, RFC 1918
		"198.18.0.0/15",   // benchmarking, RFC 2544
		"198.51.100.0/24", // documentation, RFC 5737
		"203.0.113.0/24",  // documentation, RFC 5737
		"224.0.0.0/4",     // multicast, RFC 5771
		"240.0.0.0/4",     // reserved, RFC 1112, and the broadcast address, RFC 919
	)

	// global6 is the IPv6 block from which global unicast addresses are assigned
	// (iana-ipv6-address-space, RFC 4291). Everything outside it is denied: ::, ::1, IPv4-compatible
	// ::/96, NAT64 64:ff9b::/96 (RFC 6052) and 64:ff9b:1::/48 (RFC 8215), discard-only 100::/64
	// (RFC 6666), segment routing 5f00::/16 (RFC 9602), fc00::/7, fe80::/10, fec0::/10, ff00::/8.
	global6 = netip.MustParsePrefix("2000::/3")

	// denied6 has the blocks inside global6 that are not globally routable.
	denied6 = prefixes(
		"2001::/23",     // IETF protocol assignments, with Teredo, RFC 2928, RFC 4380
		"2001:db8::/32", // documentation, RFC 3849
		"2002::/16",     // 6to4, which carries an IPv4 address, RFC 3056
		"3fff::/20",     // documentation, RFC 9637
	)
)

func prefixes(cidrs ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(cidrs))
	for i, s := range cidrs {
		list[i] = netip.MustParsePrefix(s)
	}
	return list
}

// guard decides which addresses may be called.
type guard struct{ allow []netip.Prefix }

func newGuard(allow []netip.Prefix) guard {
	var g guard
	for _, p := range allow {
		// Addresses are unmapped before they are compared, so networks must be too.
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		g.allow = append(g.allow, p)
	}
	return g
}

// check returns an error that wraps ErrDenied unless a may be called. The allowed networks override
// the lists above.
func (g guard) check(a netip.Addr) error {
	a = a.Unmap().WithZone("")
	if contains(g.allow, a) {
		return nil
	}
	switch {
	case a.Is4() && !contains(denied4, a):
		return nil
	case a.Is6() && global6.Contains(a) && !contains(denied6, a):
		return nil
	}
	return fmt.Errorf("%w: %s", ErrDenied, a)
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
