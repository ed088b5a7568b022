// Package storagetest is the conformance suite that every pendinguploads.Storage must pass.
//
// It checks the guarantees of the interface through the interface, unusual cases first: empty files, files
// of exactly the limit, readers that fail midway, contexts that have ended. It does not know how a backend
// stores files; what only one backend guarantees is tested beside that backend. A backend's own test calls
// Run once.
package storagetest

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// A Backend is a Storage under test, with the operations that the suite needs beside the interface. All of
// them are called from several goroutines.
type Backend struct {
	Storage pendinguploads.Storage

	// Open returns another Storage on the same files with other limits, like another replica.
	Open func(limits pendinguploads.Limits) pendinguploads.Storage

	// Age moves all times of a file into the past.
	Age func(ctx context.Context, id uuid.UUID, by time.Duration) error

	// ExpireKey makes an idempotency key expire.
	ExpireKey func(ctx context.Context, workspace uuid.UUID, key string) error

	// Expire makes a file expire, as if it had been staged long ago.
	Expire func(ctx context.Context, id uuid.UUID) error

	// Delete deletes a file with its content, as a sweep does. Deleting a missing file succeeds.
	Delete func(ctx context.Context, id uuid.UUID) error

	// Inbox returns all inbox rows of a workspace, oldest first.
	Inbox func(ctx context.Context, workspace uuid.UUID) ([]activity.Row, error)
}

// limits keep the suite fast: a file of the maximum size has four chunks of a MiB.
var limits = pendinguploads.Limits{MaxFileBytes: 4 * mib, MaxBatchBytes: 6 * mib, TTL: time.Hour}

const (
	mib = 1 << 20

	// testTimeout is how long a single test may take before its context ends.
	testTimeout = 2 * time.Minute
)

// Run runs the suite against the Storage that open returns, which must have the given limits. It calls
// open once for all tests that have workspaces of their own, and once for each test that sweeps.
func Run(t *testing.T, open func(t *testing.T, limits pendinguploads.Limits) Backend) {
	s := suite{open(t, limits)}
	for _, c := range []struct {
		name string
		test func(*testing.T, context.Context)
	}{
		{"EverySizeComesBackByteForByte", s.everySize},
		{"OddReadersAreReadToTheirEnd", s.oddReaders},
		{"OneByteTooManyIsRefused", s.tooLarge},
		{"WhatNoWorkspaceWouldAcceptIsRefused", s.invalid},
		{"ContentOfAnotherLengthIsRefused", s.lyingSize},
		{"NothingIsStagedIfAReaderFails", s.failingReader},
		{"NothingIsStagedIfTheContextEnds", s.cancelledStage},
		{"NoFilesAreNoRows", s.noFiles},
		{"FilesAndRowsKeepTheirOrder", s.order},
		{"TheAnnouncementIsThatOfTheContract", s.announcement},

		{"ContentIsAReadSeeker", s.readSeeker},
		{"SeeksAcrossPiecesFindTheirBytes", s.seeks},
		{"ServeContentServesRanges", s.serveContent},
		{"ReadersOfOneFileAreIndependent", s.independentReaders},
		{"ASweptFileNeverEndsCleanly", s.sweptMidRead},
		{"AReadOfAnEndedContextNeverEndsCleanly", s.cancelledRead},
		{"AClosedReaderNeverEndsCleanly", s.closedReader},

		{"AckTwiceCountsOnce", s.ackTwice},
		{"AnAckedFileStaysReadable", s.ackedStaysReadable},
		{"AnExpiredFileLooksMissing", s.expired},
		{"ASweptFileLooksMissing", s.swept},
		{"AnotherWorkspacesFileLooksMissing", s.isolation},
		{"MarkFetchedReportsTheFirstOnly", s.markFetched},
		{"AnEndedContextIsNotAMissingFile", s.cancelledCalls},

		{"ListSelectsByState", s.listStates},
		{"ListPagesOldestFirst", s.listPages},
		{"ListIsBounded", s.listBounds},

		{"OneOfManyIsTheFirst", s.oneFirst},
		{"AckersFetchersAndDeletersDoNotInterfere", s.race},

		{"AnUploadSentAgainGetsItsFirstAnswer", s.onceReplays},
		{"AKeyIsForItsFilesOnly", s.onceOtherFiles},
		{"KeysAreIndependent", s.onceIndependent},
		{"AFailedUploadFreesItsKey", s.onceFailed},
		{"AKeyInUseIsNotWaitedFor", s.onceInUse},
		{"OfManyWithOneKeyOneIsStaged", s.onceConcurrent},
		{"AnExpiredKeyIsNew", s.onceExpired},

		{"AtItsEdgeAQuotaIsExact", s.quotaEdge},
		{"AQuotaIsFilledAndFreed", s.quotaFills},
		{"ARunningUploadCountsForTheQuota", s.quotaInFlight},
		{"AReplayNeedsNoQuota", s.quotaAndKeys},
		{"NoQuotaIsUnlimited", s.noQuota},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			c.test(t, ctx)
		})
	}
	// A sweep is of all workspaces, so these tests must not share their files.
	for _, c := range []struct {
		name string
		test func(suite, *testing.T, context.Context)
	}{
		{"ASweepDeletesWhatIsDueAndNothingElse", suite.sweepDeletesWhatIsDue},
		{"SweepersShareTheWork", suite.sweepersShare},
		{"ASweepDisturbsNoReader", suite.sweepRaces},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			c.test(suite{open(t, limits)}, t, ctx)
		})
	}
}

// suite has the tests as its methods.
type suite struct {
	Backend
}
