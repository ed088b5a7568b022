package pgtest

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lib/pq"
)

// Scans returns how the statement reads its tables, such as "Index Scan of things by things_pkey", sorted and without
// duplicates. It uses the generic plan, which PostgreSQL uses for a prepared statement that is executed often; args
// only need the right types. Fill and ANALYZE the tables first: PostgreSQL scans small tables sequentially.
func Scans(t testing.TB, db *sql.DB, statement string, args ...any) []string {
	t.Helper()
	ctx := t.Context()
	conn, err := db.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	values := make([]string, len(args))
	for i, a := range args {
		values[i] = pq.QuoteLiteral(fmt.Sprint(a))
	}
	execute := "p"
	if len(values) > 0 {
		execute += "(" + strings.Join(values, ", ") + ")"
	}
	for _, s := range []string{`SET plan_cache_mode = force_generic_plan`, `PREPARE p AS ` + statement} {
		if _, err := conn.ExecContext(ctx, s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	defer conn.ExecContext(context.WithoutCancel(ctx), `DEALLOCATE p`) // the connection goes with the test
	var raw []byte
	if err := conn.QueryRowContext(ctx, `EXPLAIN (FORMAT JSON) EXECUTE `+execute).Scan(&raw); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	var plan any
	if err := json.Unmarshal(raw, &plan); err != nil {
		t.Fatal(err)
	}
	var scans []string
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, item := range v {
				walk(item)
			}
		case map[string]any:
			if kind, _ := v["Node Type"].(string); strings.HasSuffix(kind, "Scan") && v["Relation Name"] != nil {
				scan := fmt.Sprintf("%s of %s", kind, v["Relation Name"])
				if index := v["Index Name"]; index != nil {
					scan += fmt.Sprintf(" by %s", index)
				}
				scans = append(scans, scan)
			} else if kind == "Bitmap Index Scan" {
				scans = append(scans, fmt.Sprintf("%s by %s", kind, v["Index Name"]))
			}
			if kind, _ := v["Node Type"].(string); kind == "Sort" {
				scans = append(scans, "Sort")
			}
			for _, key := range []string{"Plan", "Plans"} {
				walk(v[key])
			}
		}
	}
	walk(plan)
	slices.Sort(scans)
	return slices.Compact(scans)
}
