//go:build linux

// Command bench measures what the platform costs beside what PostgreSQL costs alone.
//
// It starts a private PostgreSQL that syncs, as a real one does, and the compiled platform on it,
// and runs each case twice a round, the one right after the other: through the platform, as its
// clients do, and at the limit: the same rows written or read through the same driver by as many
// workers, without a platform, or a bare handler with the same queries. Client, platform and
// PostgreSQL share the machine. A machine that is busy with something else slows both, so the
// ratio of the two is the figure to look at; the table gives the median of the rounds and how far
// they are apart.
//
// It says nothing about a network between the parts, or about disks that other machines have.
package main
