package activity_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/molecule-ai/platform/internal/activity"
	"github.com/molecule-ai/platform/internal/embeddedpg/pgtest"
)

// Planted: keys that have not expired deleted; one batch reported as all.
func TestSweepKeys_DeletesExpiredOnes(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.New(t))
	in := activity.New(db)
	if recorded, err := in.RecordOnce(t.Context(), uuid.New(), activity.Key{1}, activity.Entry{Type: "x"}); err != nil || !recorded {
		t.Fatalf("%v, %v", recorded, err)
	}
	if _, err := db.ExecContext(t.Context(), `INSERT INTO message_keys (workspace_id, digest, claim, expires_at)
		SELECT gen_random_uuid(), decode(repeat('00', 32), 'hex'), gen_random_uuid(), now() - interval '1 second' FROM generate_series(1, 1001)`); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if more, err := in.SweepKeys(t.Context()); err != nil || more != want {
			t.Errorf("more %v, %v, want %v", more, err, want)
		}
	}
	var left int
	if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM message_keys`).Scan(&left); err != nil || left != 1 {
		t.Errorf("%d keys left, %v, want the live one", left, err)
	}
}
