// Command scaling computes what so many connected workspaces ask of replicas, of PostgreSQL and of a bucket, and
// where each runs out. It is arithmetic: rates from what workspaces do, times the processor time that an
// operation was measured to take (`make bench`), against what machines have. Every assumption is a flag.
//
// It writes the tables of docs/scaling.md. It knows nothing of queues: it says how many machines are busy to the
// share that is given, not how long anybody waits; and what was measured on one small machine is taken to hold
// for each processor of a larger one.
package main
