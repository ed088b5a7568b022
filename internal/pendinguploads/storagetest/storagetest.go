// Package storagetest is the suite that every pendinguploads.Storage must pass.
//
// It checks what the interface promises, through the interface, with the odd cases first.
// How a backend keeps files is not its business; what only one backend can promise is for
// that backend's own tests, which call Run once.
package storagetest

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/pendinguploads"
)

// A Backend is a Storage under test, with what the suite must do behind its back. All of
// it is used from several goroutines.
type Backend struct {
	Storage pendinguploads.Storage

	// Open returns another Storage on the same files, as another replica has it, with other
	// limits.
	Open func(limits pendinguploads.Limits) pendinguploads.Storage

	// Age moves all times of a file into the past.
	Age func(ctx context.Context, id uuid.UUID, by time.Duration) error

	// ExpireKey ends the time of a key.
	ExpireKey func(ctx context.Context, workspace uuid.UUID, key string) error

	// Expire ends the time of a file, as if it had been staged long ago.
	Expire func(ctx context.Context, id uuid.UUID) error

	// Delete removes a file with all its bytes, as a sweep does. A file that is gone is
	// no error.
	Delete func(ctx context.Context, id uuid.UUID) error

	// Inbox returns all inbox rows of a workspace, oldest first.
	Inbox func(ctx context.Context, workspace uuid.UUID) ([]activity.Row, error)
}

// limits keep the suite quick: a file at the cap has four pieces of a MiB.
var limits = pendinguploads.Limits{MaxFileBytes: 4 * mib, MaxBatchBytes: 6 * mib, TTL: time.Hour}

const (
	mib = 1 << 20

	// testTimeout is how long a single test may take before its context ends.
	testTimeout = 2 * time.Minute
)

// Run runs the suite against the Storage that open returns, which must have those limits.
// open is called once for all tests, for each has workspaces of its own, and once more for each
// test that sweeps.
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
		{"AckersFetchersAndDeletersDoNotHurtEachOther", s.race},

		{"AnUploadSentAgainGetsItsFirstAnswer", s.onceReplays},
		{"AKeyIsForTheVeryFiles", s.onceOtherFiles},
		{"KeysAreIndependent", s.onceIndependent},
		{"AFailedUploadFreesItsKey", s.onceFailed},
		{"AKeyInUseIsNotWaitedFor", s.onceInUse},
		{"OfManyWithOneKeyOneIsStaged", s.onceConcurrent},
		{"AKeyThatIsOverIsNew", s.onceOver},

		{"AtItsEdgeAQuotaIsExact", s.quotaEdge},
		{"AQuotaIsFilledAndFreed", s.quotaFills},
		{"AnUploadInFlightHasItsRoom", s.quotaInFlight},
		{"AReplayNeedsNoRoom", s.quotaAndKeys},
		{"NoQuotaIsNone", s.noQuota},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			c.test(t, ctx)
		})
	}
	// A sweep is of all workspaces, so these must not see each other's files.
	for _, c := range []struct {
		name string
		test func(suite, *testing.T, context.Context)
	}{
		{"ASweepTakesWhatIsOverAndNothingElse", suite.sweepTakesWhatIsOver},
		{"SweepersShareTheWork", suite.sweepersShare},
		{"ASweepHurtsNobody", suite.sweepRaces},
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
