// Command chaos runs several platforms on one PostgreSQL under the load of many workspaces, injects faults, and checks
// at the end that every promise was kept: no file lost, corrupt or delivered to another workspace.
//
// It is a black-box test: it runs the compiled binary and speaks HTTP to it through proxies that cut connections. It
// reads the database only for what no client can see. Every operation is recorded in a history with its start, end and
// outcome. A timeout, a cut connection or a status of 500 and above counts as unknown: the operation happened
// completely, or not at all.
//
// The seed determines all choices of a run, but not the timing. The command needs Linux. As root it mounts a small file
// system for the temporary files of uploads and fills it; otherwise it limits the size of files that platforms write.
package main
