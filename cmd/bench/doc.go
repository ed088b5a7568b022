//go:build linux

// Command bench compares the platform's speed with a limit: PostgreSQL without the platform.
//
// It starts a private PostgreSQL, which syncs to disk, and the compiled platform on it. In each round it runs each case
// twice, one right after the other: through the platform, with HTTP clients; and at the limit, where as many workers
// read or write the same rows through the same driver, or call a bare handler with the same queries. Client, platform
// and PostgreSQL share the machine. Other load on the machine slows both, so the ratio of the two is the figure to use.
// The table shows the median of the rounds, and the lowest and highest value.
//
// The figures do not cover a network between the parts, or other machines' disks.
package main
