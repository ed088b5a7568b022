// Command chaos uses two platforms on one PostgreSQL as many workspaces would, breaks everything
// around them meanwhile, and checks in the end that every promise was kept.
//
// What it knows comes from outside: it runs the compiled binary, speaks HTTP to it through proxies
// that cut connections, and looks into the database only for what no client can see. Every
// operation goes into a history with its start, end and outcome. Timeouts, cut connections and
// answers of 500 and more count as unknown: the operation may have happened or not, but in whole.
//
// A run is told by its seed: the same one makes the same choices, though what falls into which
// moment is the machine's. It needs Linux. As root it also mounts a small file system for the
// temporary files of uploads and fills it; otherwise it limits how long files may grow.
package main
