// Package migrations holds the database schema as golang-migrate files, an up and a down
// for each version, embedded into the binary.
//
// A file is run as one simple query, hence as one transaction: it is applied whole or not
// at all. The newer schema does not break the older binary: what a release needs is added
// before it rolls, and removed after the one that stopped using it has. An up file that has to break it says so in
// its first line, "-- Breaks older platforms: why"; then older binaries refuse to serve on the schema, so that they
// have to be stopped before it is applied.
package migrations

import "embed"

// Files are the migrations, at the root of the file system.
//
//go:embed *.sql
var Files embed.FS
