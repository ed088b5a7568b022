package main

import "math"

// Assumptions are what workspaces do, and what machines have.
type assumptions struct {
	Workspaces float64 // connected at the same time

	Uploads   float64 // files a day and workspace
	FileBytes float64 // of a file, on average
	Messages  float64 // a day and workspace
	Peak      float64 // of the busiest hour over the average
	Heartbeat float64 // seconds between two
	Hold      float64 // seconds that a poll is held

	AckHours float64 // how long a file is there, staged and acknowledged
	RowDays  float64 // how long a row of the inbox is kept
	RowBytes float64 // with its indexes

	Busy          float64 // to what share machines are used at the peak
	ReplicaCores  float64
	ReplicaHeld   float64 // MAX_WAITS
	HeldBytes     float64 // of memory for each
	PostgresCores float64
	CommitsLimit  float64 // a second, that the disk of PostgreSQL syncs; several at once count as one each
	WALLimit      float64 // MiB a second that its disk takes, with checkpoints
	NotesLimit    float64 // notifications a second that it passes on
	Pooled        float64 // sessions of PgBouncer
	BucketLimit   float64 // requests a second and prefix
	Bucket        bool    // files longer than 64 KiB are in a bucket
}

// usual are the assumptions of docs/scaling.md.
func usual() assumptions {
	return assumptions{
		Workspaces: 1_000_000,
		Uploads:    10, FileBytes: 300 << 10, Messages: 50, Peak: 4, Heartbeat: 30, Hold: 55,
		AckHours: 2, RowDays: 7, RowBytes: 1200,
		Busy: 0.6, ReplicaCores: 4, ReplicaHeld: 20_000, HeldBytes: 30 << 10, PostgresCores: 32,
		CommitsLimit: 20_000, WALLimit: 500, NotesLimit: 200_000, Pooled: 100, BucketLimit: 3500,
	}
}

const (
	day = 24 * 60 * 60.0

	// What internal/notify does: 500 workspaces a query, each about every 2.25 s.
	lookBatch, lookEvery = 500, 2.25

	// What internal/database opens with the default settings: connections of a replica without a pooler, and past one.
	direct, pastPooler = 23, 5

	// inlineBytes stay in PostgreSQL for a file whose bytes are in a bucket.
	inlineBytes = 1 << 10

	// requestsPerFile of a bucket: written, read, deleted.
	requestsPerFile = 3
)

// A demand is what they come to at the peak.
type demand struct {
	Uploads, Messages, Polls, Heartbeats, Looks float64 // a second
	InMiB                                       float64 // a second, of files
	Notes                                       float64 // notifications that PostgreSQL delivers a second

	ReplicaCores, PostgresCores float64 // kept busy
	ReplicasByCores             float64
	ReplicasByPolls             float64
	Replicas                    float64
	HeldGiB                     float64 // on each replica, for polls

	Commits     float64 // a second
	WAL         float64 // MiB a second
	Connections float64 // without a pooler
	Pooled      float64 // with one
	StagedGiB   float64
	InboxGiB    float64
	BucketOps   float64 // a second
	Prefixes    float64 // of the bucket's keys, at least
	BucketGiB   float64

	// How many PostgreSQL there have to be, for each reason.
	ByCores, ByCommits, ByWAL, ByNotes float64
}

// Postgres is how many PostgreSQL that makes.
func (d demand) Postgres() float64 {
	return math.Ceil(max(d.ByCores, d.ByCommits, d.ByWAL, d.ByNotes))
}

// first is what runs out first, of PostgreSQL.
func (d demand) first() string {
	switch d.of() {
	case d.ByCommits:
		return "commits"
	case d.ByNotes:
		return "news"
	case d.ByWAL:
		return "WAL"
	default:
		return "processors"
	}
}

func (d demand) of() float64 { return max(d.ByCores, d.ByCommits, d.ByWAL, d.ByNotes) }

// demand computes what the assumptions come to with these costs.
func (a assumptions) demand(c costs) demand {
	var d demand
	d.Uploads = a.Workspaces * a.Uploads / day * a.Peak
	d.Messages = a.Workspaces * a.Messages / day * a.Peak
	d.Heartbeats = a.Workspaces / a.Heartbeat
	rows := d.Uploads + d.Messages
	d.Polls = a.Workspaces/a.Hold + rows // what comes answers a poll, and another follows
	d.Looks = a.Workspaces / lookBatch / lookEvery
	d.InMiB = d.Uploads * a.FileBytes / mib

	stored := a.FileBytes
	if a.Bucket {
		stored = min(stored, inlineBytes)
		d.BucketOps, d.BucketGiB = d.Uploads*requestsPerFile, a.Workspaces*a.Uploads/24*a.AckHours*a.FileBytes/(1<<30)
	}
	d.Prefixes = math.Ceil(d.BucketOps / (a.BucketLimit * a.Busy))
	upload, fetch := c.Upload.of(c.UploadMiB, a.FileBytes), c.Fetch.of(c.FetchMiB, a.FileBytes)
	if a.Bucket { // PostgreSQL has the rows alone
		upload.Postgres, fetch.Postgres = c.Upload.Postgres, c.Fetch.Postgres
	}
	for _, load := range []struct {
		rate float64
		cost cost
	}{{d.Uploads, upload}, {d.Uploads, fetch}, {d.Uploads, c.Ack}, {d.Messages, c.Upload}, {d.Polls, c.Poll}, {d.Heartbeats, c.Heartbeat}, {d.Looks, c.Look}} {
		d.ReplicaCores += load.rate * load.cost.Platform / 1000
		d.PostgresCores += load.rate * load.cost.Postgres / 1000
	}
	d.ReplicasByCores = math.Ceil(d.ReplicaCores / (a.ReplicaCores * a.Busy))
	d.ReplicasByPolls = math.Ceil(a.Workspaces / a.ReplicaHeld)
	d.Replicas = max(d.ReplicasByCores, d.ReplicasByPolls) + 1 // one may be away
	d.HeldGiB = min(a.Workspaces/(d.Replicas-1), a.ReplicaHeld) * a.HeldBytes / (1 << 30)

	d.Commits = 3*d.Uploads + d.Messages + d.Heartbeats // staged, fetched, acknowledged
	d.WAL = (d.Uploads*(stored+3*a.RowBytes) + d.Messages*2*a.RowBytes + d.Heartbeats*400) / mib
	d.Connections = direct * (d.Replicas + 1)
	d.Pooled = a.Pooled + pastPooler*(d.Replicas+1)
	d.StagedGiB = a.Workspaces * a.Uploads / 24 * a.AckHours * stored / (1 << 30)
	d.InboxGiB = a.Workspaces * (a.Uploads + a.Messages) * a.RowDays * a.RowBytes / (1 << 30)
	// What is announced together, within 2 ms, is one notification; every replica hears each.
	d.Notes = min(rows+2*d.Uploads, 500*d.Replicas) * d.Replicas

	d.ByCores = d.PostgresCores / (a.PostgresCores * a.Busy)
	d.ByCommits = d.Commits / (a.CommitsLimit * a.Busy)
	d.ByWAL = d.WAL / (a.WALLimit * a.Busy)
	d.ByNotes = d.Notes / (a.NotesLimit * a.Busy)
	return d
}
