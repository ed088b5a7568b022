// Command scaling computes the load of a number of connected workspaces on replicas, PostgreSQL and a bucket, and which
// resource is exhausted first. It multiplies the rate of each operation by its processor time, measured by `make
// bench`, and divides by the capacity of machines. Every assumption is a flag.
//
// It writes the tables of docs/scaling.md. It does not model queues: it computes the number of machines at a given
// utilization, not waiting times. It assumes that each processor of a large machine is as fast as the measured one.
package main
