package schema_test

import (
	"os"
	"testing"
)

// testdata lists the schema of 20260701100000 as the migrations of 42bbc23 made it, before they were folded into one.
// Databases of that time go on untouched, so those of today must be the very same. Planted: another default, another
// fillfactor, a word in the body of a function.
func TestUp_EndsInTheSchemaOfTheMigrationsBeforeTheFold(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile("testdata/20260701100000.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got := dump(t, filesOnly(t, 3)); got != string(want) {
		t.Errorf("the schema is\n%s\nwant:\n%s", got, want)
	}
}
