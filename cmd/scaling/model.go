package main

import "math"

// assumptions are the behaviour of workspaces and the capacity of machines.
type assumptions struct {
	Workspaces float64 // connected at the same time

	Uploads   float64 // files per day and workspace
	FileBytes float64 // average size of a file
	Messages  float64 // per day and workspace
	Peak      float64 // ratio of the busiest hour's rate to the average
	Heartbeat float64 // seconds between two heartbeats
	Hold      float64 // seconds for which a poll is held

	AckHours float64 // hours for which a file is stored, staged and acknowledged
	RowDays  float64 // days for which an inbox row is stored
	RowBytes float64 // of an inbox row, with its indexes

	Busy               float64 // utilization of machines at the peak, from 0 to 1
	ReplicaCores       float64
	ReplicaHeld        float64 // held polls per replica (MAX_WAITS)
	HeldBytes          float64 // memory of a held poll
	PostgresCores      float64
	CommitsLimit       float64 // per second that PostgreSQL's disk syncs; commits that share a sync count separately
	WALLimit           float64 // MiB per second that its disk writes, with checkpoints
	NotificationsLimit float64 // notifications per second that it delivers
	Pooled             float64 // sessions that PgBouncer opens
	BucketLimit        float64 // requests per second and prefix
	Bucket             bool    // file content is in a bucket
}

// defaultAssumptions are those of docs/scaling.md.
func defaultAssumptions() assumptions {
	return assumptions{
		Workspaces: 1_000_000,
		Uploads:    10, FileBytes: 300 << 10, Messages: 50, Peak: 4, Heartbeat: 30, Hold: 55,
		AckHours: 2, RowDays: 7, RowBytes: 1200,
		Busy: 0.6, ReplicaCores: 4, ReplicaHeld: 20_000, HeldBytes: 30 << 10, PostgresCores: 32,
		CommitsLimit: 20_000, WALLimit: 500, NotificationsLimit: 200_000, Pooled: 100, BucketLimit: 3500,
	}
}

const (
	day = 24 * 60 * 60.0

	// internal/notify's polling: 500 workspaces per query, each about every 2.25 s.
	checkBatch, checkInterval = 500, 2.25

	// What internal/database opens with the default settings: connections of a replica without a pooler, and past one.
	direct, pastPooler = 23, 5

	// inlineBytes is the size in PostgreSQL of a file whose bytes are in a bucket.
	inlineBytes = 1 << 10

	// requestsPerFile are the requests to a bucket for a file: write, read and delete.
	requestsPerFile = 3
)

// A demand is the load at the peak, and the machines that it needs.
type demand struct {
	Uploads, Messages, Polls, Heartbeats, InboxChecks float64 // per second
	InMiB                                             float64 // of file content per second
	Notifications                                     float64 // that PostgreSQL delivers per second

	ReplicaCores, PostgresCores float64 // number of busy ones
	ReplicasByCores             float64
	ReplicasByPolls             float64
	Replicas                    float64
	HeldGiB                     float64 // of memory per replica, for held polls

	Commits     float64 // per second
	WAL         float64 // MiB per second
	Connections float64 // without a pooler
	Pooled      float64 // with one
	StagedGiB   float64
	InboxGiB    float64
	BucketOps   float64 // per second
	Prefixes    float64 // minimum number of key prefixes in the bucket
	BucketGiB   float64

	// Number of PostgreSQL servers needed, by resource.
	ByCores, ByCommits, ByWAL, ByNotifications float64
}

// Postgres returns the number of PostgreSQL servers needed.
func (d demand) Postgres() float64 {
	return math.Ceil(max(d.ByCores, d.ByCommits, d.ByWAL, d.ByNotifications))
}

// bottleneck returns the resource of PostgreSQL that is exhausted first.
func (d demand) bottleneck() string {
	switch d.largest() {
	case d.ByCommits:
		return "commits"
	case d.ByNotifications:
		return "notifications"
	case d.ByWAL:
		return "WAL"
	default:
		return "processors"
	}
}

func (d demand) largest() float64 { return max(d.ByCores, d.ByCommits, d.ByWAL, d.ByNotifications) }

// demand computes the load under the assumptions, with these costs.
func (a assumptions) demand(c costs) demand {
	var d demand
	d.Uploads = a.Workspaces * a.Uploads / day * a.Peak
	d.Messages = a.Workspaces * a.Messages / day * a.Peak
	d.Heartbeats = a.Workspaces / a.Heartbeat
	rows := d.Uploads + d.Messages
	d.Polls = a.Workspaces/a.Hold + rows // each new row ends a held poll, and another one follows
	d.InboxChecks = a.Workspaces / checkBatch / checkInterval
	d.InMiB = d.Uploads * a.FileBytes / mib

	stored := a.FileBytes
	if a.Bucket {
		stored = min(stored, inlineBytes)
		d.BucketOps, d.BucketGiB = d.Uploads*requestsPerFile, a.Workspaces*a.Uploads/24*a.AckHours*a.FileBytes/(1<<30)
	}
	d.Prefixes = math.Ceil(d.BucketOps / (a.BucketLimit * a.Busy))
	upload, fetch := c.Upload.forBytes(c.UploadMiB, a.FileBytes), c.Fetch.forBytes(c.FetchMiB, a.FileBytes)
	if a.Bucket { // PostgreSQL has only the rows
		upload.Postgres, fetch.Postgres = c.Upload.Postgres, c.Fetch.Postgres
	}
	for _, load := range []struct {
		rate float64
		cost cost
	}{{d.Uploads, upload}, {d.Uploads, fetch}, {d.Uploads, c.Ack}, {d.Messages, c.Upload}, {d.Polls, c.Poll}, {d.Heartbeats, c.Heartbeat}, {d.InboxChecks, c.InboxCheck}} {
		d.ReplicaCores += load.rate * load.cost.Platform / 1000
		d.PostgresCores += load.rate * load.cost.Postgres / 1000
	}
	d.ReplicasByCores = math.Ceil(d.ReplicaCores / (a.ReplicaCores * a.Busy))
	d.ReplicasByPolls = math.Ceil(a.Workspaces / a.ReplicaHeld)
	d.Replicas = max(d.ReplicasByCores, d.ReplicasByPolls) + 1 // one may fail
	d.HeldGiB = min(a.Workspaces/(d.Replicas-1), a.ReplicaHeld) * a.HeldBytes / (1 << 30)

	d.Commits = 3*d.Uploads + d.Messages + d.Heartbeats // staged, fetched, acknowledged
	d.WAL = (d.Uploads*(stored+3*a.RowBytes) + d.Messages*2*a.RowBytes + d.Heartbeats*400) / mib
	d.Connections = direct * (d.Replicas + 1)
	d.Pooled = a.Pooled + pastPooler*(d.Replicas+1)
	d.StagedGiB = a.Workspaces * a.Uploads / 24 * a.AckHours * stored / (1 << 30)
	d.InboxGiB = a.Workspaces * (a.Uploads + a.Messages) * a.RowDays * a.RowBytes / (1 << 30)
	// Rows announced within 2 ms share one notification; every replica receives each.
	d.Notifications = min(rows+2*d.Uploads, 500*d.Replicas) * d.Replicas

	d.ByCores = d.PostgresCores / (a.PostgresCores * a.Busy)
	d.ByCommits = d.Commits / (a.CommitsLimit * a.Busy)
	d.ByWAL = d.WAL / (a.WALLimit * a.Busy)
	d.ByNotifications = d.Notifications / (a.NotificationsLimit * a.Busy)
	return d
}
