package config_test

import (
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/molecule-ai/platform/internal/config"
)

// parse does what the binary does with its command line and environment.
func parse(t *testing.T, args ...string) config.Settings {
	t.Helper()
	var s config.Settings
	parser, err := kong.New(&s)
	if err == nil {
		_, err = parser.Parse(args)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// unset removes every setting from the environment for the duration of the test.
func unset(t *testing.T) {
	t.Helper()
	for _, f := range reflect.VisibleFields(reflect.TypeFor[config.Settings]()) {
		name := f.Tag.Get("env")
		t.Setenv(name, "") // so that it is restored
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLoad_Defaults(t *testing.T) {
	unset(t)
	want := config.Config{
		Addr: "127.0.0.1:8080", DataDir: "data", OpenRegistration: true,
		CORSOrigins:  []string{"http://localhost:3000", "http://localhost:3001"},
		MaxFileBytes: 100 << 20, MaxRequestBytes: 100 << 20, MaxFiles: 64, MaxUploads: 256, MaxDownloads: 256,
		MaxMessages: 256, MaxWaits: 20_000, MaxStreams: 1000, MaxJSONBytes: 32 << 20, SpoolBytes: 4 << 30, RateLimit: 100,
		PendingTTL: 24 * time.Hour, LogLevel: slog.LevelInfo, LogFormat: "json",
		AckRetention: time.Hour, ActivityRetention: 7 * 24 * time.Hour, SweepInterval: 5 * time.Minute, QuotaBytes: 1 << 30, QuotaFiles: 1000, StorageInlineBytes: 64 << 10,
		DatabaseQueryConns: 11, DatabaseFileConns: 8,
	}
	c, err := parse(t).Load()
	if err != nil || !reflect.DeepEqual(c, want) || !c.Embedded() {
		t.Errorf("got  %+v, %v\nwant %+v", c, err, want)
	}
}

func TestLoad_EverySettingByItsVariable(t *testing.T) {
	unset(t)
	spool := t.TempDir()
	want := config.Config{
		Addr: ":9", DatabaseURL: "postgres://u:p@db.example/platform", DataDir: "/d", SpoolDir: spool, AdminToken: strings.Repeat("admin", 7), PublicURL: "https://p.example",
		OpenRegistration: true, CORSOrigins: []string{"https://a.example", "http://b.example:8080"},
		TrustedProxies: []string{"10.0.0.0/8", "fd00::1/128"}, PushAllowCIDRs: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")},
		MaxFileBytes: 1, MaxRequestBytes: 2 << 30, MaxFiles: 3, MaxUploads: 4, MaxDownloads: 5,
		MaxMessages: 6, MaxWaits: 8, MaxStreams: 9, MaxJSONBytes: 9 << 20, SpoolBytes: 3 << 30, RateLimit: 0.5,
		PendingTTL: 90 * time.Minute, LogLevel: slog.LevelDebug, LogFormat: "text",
		AckRetention: time.Minute, ActivityRetention: 2 * time.Hour, SweepInterval: 3 * time.Second, QuotaBytes: 10 << 20, QuotaFiles: 11,
		MetricsAddr: ":10", TracesEndpoint: "https://traces.example/in",
		DatabaseDirectURL: "postgres://u:p@db1.example:5432,db2.example:5432/platform?target_session_attrs=read-write", DrainDelay: 5 * time.Second,
		StorageURL: "s3://bucket?endpoint=https://s3.example&prefix=a/", StorageInlineBytes: 12, StorageRedirect: true,
		DatabaseQueryConns: 4, DatabaseFileConns: 2,
	}
	values := map[string]string{
		"ADDR": ":9", "DATABASE_URL": want.DatabaseURL, "DATA_DIR": "/d", "SPOOL_DIR": spool, "ADMIN_TOKEN": want.AdminToken, "PUBLIC_URL": "https://p.example/", "REGISTRATION": "open",
		"CORS_ORIGINS": " https://a.example,, http://b.example:8080 ", "TRUSTED_PROXIES": "10.1.2.3/8,fd00::1", "PUSH_ALLOW_CIDRS": "192.168.7.7/16",
		"MAX_FILE_BYTES": "1", "MAX_REQUEST_BYTES": "2GiB", "MAX_FILES": "3", "MAX_UPLOADS": "4", "MAX_DOWNLOADS": "5",
		"MAX_MESSAGES": "6", "MAX_WAITS": "8", "MAX_STREAMS": "9", "MAX_JSON_BYTES": "9MiB",
		"SPOOL_BYTES": "3GiB", "RATE_LIMIT": "0.5",
		"ACK_RETENTION": "1m", "ACTIVITY_RETENTION": "2h", "SWEEP_INTERVAL": "3s", "QUOTA_BYTES": "10MiB", "QUOTA_FILES": "11",
		"PENDING_TTL": "1h30m", "LOG_LEVEL": "debug", "LOG_FORMAT": "text", "METRICS_ADDR": ":10",
		"STORAGE_URL": want.StorageURL, "STORAGE_INLINE_BYTES": "12", "STORAGE_REDIRECT": "true",
		"OTEL_EXPORTER_OTLP_ENDPOINT": "https://all.example", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": want.TracesEndpoint,
		"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "false",
		"DATABASE_QUERY_CONNS": "4", "DATABASE_FILE_CONNS": "2",
		"DATABASE_DIRECT_URL": want.DatabaseDirectURL, "DRAIN_DELAY": "5s",
	}
	var args []string
	for name, value := range values {
		t.Setenv(name, value)
		args = append(args, "--"+kebab(name)+"="+value)
	}
	check := func(how string, s config.Settings) {
		t.Helper()
		v := reflect.ValueOf(s)
		for i := range v.NumField() {
			if name := v.Type().Field(i).Tag.Get("env"); v.Field(i).String() != values[name] {
				t.Errorf("%s: %s is %q, want %q", how, name, v.Field(i), values[name])
			}
		}
		c, err := s.Load()
		if err != nil || !reflect.DeepEqual(c, want) || c.Embedded() {
			t.Errorf("%s: got  %+v, %v\nwant %+v", how, c, err, want)
		}
	}
	check("variables", parse(t))
	for name := range values {
		t.Setenv(name, "overridden")
	}
	check("flags", parse(t, args...))
}

func kebab(variable string) string { return strings.ToLower(strings.ReplaceAll(variable, "_", "-")) }

// Planted faults: a direct URL accepted without a pooler's; commands that connect through the pooler.
func TestLoad_DirectURLNeedsAPooler(t *testing.T) {
	t.Parallel()
	const pooler, direct = "postgres://u@pooler:6432/platform", "postgres://u@db:5432/platform"
	s := config.Settings{DatabaseURL: pooler, DatabaseDirectURL: direct, DataDir: "d"}
	if url, _, err := s.LoadDatabase(); url != direct || err != nil {
		t.Errorf("commands use %q, %v", url, err)
	}
	s.DatabaseDirectURL = ""
	if url, _, err := s.LoadDatabase(); url != pooler || err != nil {
		t.Errorf("commands use %q, %v", url, err)
	}
	s.DatabaseURL, s.DatabaseDirectURL = "", direct
	_, err := s.Load()
	_, _, err2 := s.LoadDatabase()
	for _, err := range []error{err, err2} {
		if err == nil || !strings.Contains(err.Error(), "DATABASE_DIRECT_URL is set and DATABASE_URL is empty") {
			t.Errorf("%v", err)
		}
	}
}

// Operators derive the flag's name from the variable's.
func TestSettings_FlagsAreVariablesInKebabCase(t *testing.T) {
	t.Parallel()
	parser, err := kong.New(&config.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	flags := map[string]bool{}
	for _, flag := range parser.Model.Flags {
		if flag.Name == "help" {
			continue
		}
		flags[flag.Name] = true
		if len(flag.Envs) != 1 || flag.Name != kebab(flag.Envs[0]) {
			t.Errorf("--%s has the variables %q", flag.Name, flag.Envs)
		}
		if flag.Help == "" || flag.Group == nil || flag.PlaceHolder == "" {
			t.Errorf("--%s has no help, group or placeholder", flag.Name)
		}
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[config.Settings]()) {
		if f.Type.Kind() != reflect.String {
			t.Errorf("%s is not a string: a bad value would keep Load from reporting the others", f.Name)
		}
		if !flags[kebab(f.Tag.Get("env"))] {
			t.Errorf("%s has no flag", f.Name)
		}
	}
}

func TestLoad_ReportsAllInvalidValuesAtOnce(t *testing.T) {
	unset(t)
	s := config.Settings{
		Addr: "localhost", DatabaseURL: "postgres://u:hunter2@[", DataDir: "", SpoolDir: "/no/such/folder", AdminToken: "s3cret s3cret", Registration: "maybe", PublicURL: "s3cret.example",
		CORSOrigins: "canvas.example", TrustedProxies: "proxy", PushAllowCIDRs: "10.0.0.0/33", MaxFileBytes: "big", MaxRequestBytes: "0",
		MaxFiles: "-1", MaxUploads: "x", MaxDownloads: "", MaxMessages: "0", MaxWaits: "-1", MaxStreams: "0", MaxJSONBytes: "8191KiB", PendingTTL: "1",
		SpoolBytes: "lots", RateLimit: "-1",
		AckRetention: "-1s", ActivityRetention: "7", SweepInterval: "0s", QuotaBytes: "0", QuotaFiles: "0",
		MetricsAddr: "nowhere", OTELEndpoint: "s3cret:s3cret@collector:4318", OTELTracesEndpoint: "/v1/traces", OTELTracesExporter: "zipkin",
		OTELDisabled: "perhaps", LogLevel: "loud", LogFormat: "xml", DatabaseDirectURL: "postgres://u:hunter2@[", DrainDelay: "soon",
		StorageURL: "ftp://s3cret", StorageInlineBytes: "2MiB", StorageRedirect: "perhaps",
	}
	_, err := s.Load()
	if err == nil {
		t.Fatal("accepted")
	}
	lines := strings.Split(err.Error(), "\n")
	for _, f := range reflect.VisibleFields(reflect.TypeFor[config.Settings]()) {
		name := f.Tag.Get("env")
		n := 0
		for _, line := range lines {
			if strings.HasPrefix(line, name+" ") && strings.Contains(line, "; write ") {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d lines on %s, want 1", n, name)
		}
	}
	if want := len(reflect.VisibleFields(reflect.TypeFor[config.Settings]())); len(lines) != want {
		t.Errorf("%d lines, want %d:\n%s", len(lines), want, err)
	}
	for _, secret := range []string{"hunter2", "s3cret"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error contains a secret:\n%s", err)
		}
	}
}

// Each case is the defaults with one setting changed, and whether Load accepts it.
func TestLoad_ChecksEveryValue(t *testing.T) {
	unset(t)
	for flag, values := range map[string]struct{ good, bad []string }{
		"addr": {
			good: []string{":8080", "0.0.0.0:0", "[::1]:65535", "localhost:80"},
			bad:  []string{"", "8080", "localhost", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:http", "::1:80"},
		},
		"data-dir":  {good: []string{"d", "/var/lib/platform"}, bad: []string{""}},
		"spool-dir": {good: []string{"", "/tmp"}},
		"database-url": {
			good: []string{"postgres://u:p@h:5432/d?sslmode=require", "postgresql://h/d", "host=h dbname=d password='with space'"},
			bad:  []string{"mysql://u:hunter2@h/d", "postgres://u:hunter2@h:port/d", "postgres://u:hunter2%zz@h/d", "hunter2", "password='hunter2"},
		},
		"database-query-conns": {
			good: []string{"4", "1000"}, bad: []string{"", "3", "1001", "-4", "many"},
		},
		"database-file-conns": {
			good: []string{"2", "1000"}, bad: []string{"", "1", "1001"},
		},
		"admin-token": {good: []string{"x", "0123456789abcdef~!"}, bad: []string{"hunter2 ", "hunter2\n", "hunter2\x7f", "hunter2é"}},
		"public-url": {
			good: []string{"", "https://p.example", "http://localhost:8080/", "https://[::1]:8443"},
			bad:  []string{"p.example", "https://", "https://:80", "ftp://p.example", "https://p.example/path", "https://u:hunter2@p.example", "https://p.example?x"},
		},
		"registration": {good: []string{"", "open", "closed"}, bad: []string{"OPEN", "yes", " open"}},
		"cors-origins": {
			good: []string{"", ",", "*", "http://localhost:3000", "https://a.example, https://b.example"},
			bad: []string{"a.example", "https://a.example/", "https://a.example/path", "ftp://a.example", "https://u@a.example", "https://", "null",
				"https://*.example", "https://a.example?q", "https://a.example https://b.example"},
		},
		"trusted-proxies":  {good: []string{"", "10.0.0.0/8", "10.0.0.1", "::1", "fd00::/8,10.0.0.1"}, bad: []string{"proxy", "10.0.0.0/33", "10.0.0", "10.0.0.0/8;::1"}},
		"push-allow-cidrs": {good: []string{"", "10.1.0.0/16", "::1"}, bad: []string{"10.1.0.0/-1", "*", "10.1.0.0/16/8"}},
		"max-file-bytes":   {good: []string{"1", "100MiB", "100 MB", "1TiB", "1.5GiB"}, bad: []string{"", "0", "-1", "0.5", "1TiB1", "2TiB", "99999999999999999999", "NaN", "1e400", "MiB"}},
		// At least 4/3 of MAX_REQUEST_BYTES, whose default is 100MiB.
		"spool-bytes": {good: []string{"134MiB", "1TiB"}, bad: []string{"", "0", "-1", "133MiB", "2TiB"}},
		"rate-limit": {
			good: []string{"0", "0.001", "0.5", "100", "1e3", "1000000"},
			bad:  []string{"", "-1", "0.0001", "1000001", "Inf", "NaN", "100/s", "1e999", "many"},
		},
		"max-request-bytes":  {good: []string{"1", "104857600"}, bad: []string{"", "0", "1025GiB", "100 MiBs"}},
		"max-files":          {good: []string{"1", "10000"}, bad: []string{"", "0", "-1", "10001", "1.5", "64 ", "0x10", "99999999999999999999"}},
		"max-uploads":        {good: []string{"1", "100000"}, bad: []string{"", "0", "100001"}},
		"max-waits":          {good: []string{"1", "100000"}, bad: []string{"", "0", "100001"}},
		"max-streams":        {good: []string{"1", "100000"}, bad: []string{"", "0", "100001"}},
		"max-downloads":      {good: []string{"1", "100000"}, bad: []string{"", "0", "100001"}},
		"pending-ttl":        {good: []string{"1s", "24h", "8760h", "1h30m"}, bad: []string{"", "0", "999ms", "-1h", "24", "8760h1s", "1d", "9999999999h"}},
		"ack-retention":      {good: []string{"0s", "0", "1h", "8760h"}, bad: []string{"", "-1ns", "1", "8760h1ns"}},
		"activity-retention": {good: []string{"0s", "168h"}, bad: []string{"", "-1h", "7d"}},
		"sweep-interval":     {good: []string{"1s", "5m"}, bad: []string{"", "0s", "999ms", "8761h"}},
		"quota-bytes":        {good: []string{"1", "1GiB", "1TiB"}, bad: []string{"", "0", "2TiB"}},
		"quota-files":        {good: []string{"1", "1000000"}, bad: []string{"", "0", "1000001"}},
		"metrics-addr":       {good: []string{"", ":9090", "127.0.0.1:0"}, bad: []string{"9090", ":99999"}},
		"log-level":          {good: []string{"debug", "info", "warn", "error", "INFO"}, bad: []string{"", "loud", "warning"}},
		"log-format":         {good: []string{"json", "text"}, bad: []string{"", "JSON"}},
	} {
		for _, value := range slices.Concat(values.good, values.bad) {
			args := []string{"--" + flag + "=" + value}
			if flag == "database-url" {
				args = append(args, "--admin-token=given")
			}
			_, err := parse(t, args...).Load()
			name := strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
			switch good := slices.Contains(values.good, value); {
			case good && err != nil:
				t.Errorf("%s=%q: %v", name, value, err)
			case !good && (err == nil || !strings.HasPrefix(err.Error(), name+" ") || strings.Contains(err.Error(), "\n")):
				t.Errorf("%s=%q: %v, want one line on it", name, value, err)
			case err != nil && strings.Contains(err.Error(), "hunter2"):
				t.Errorf("%s=%q: the error contains a secret: %v", name, value, err)
			}
		}
	}
}

// With DATABASE_URL no token is generated, and registration is closed by default.
func TestLoad_OperatorsDatabase(t *testing.T) {
	unset(t)
	s := parse(t, "--database-url=postgres://u:hunter2@h/d")
	_, err := s.Load()
	if err == nil || !strings.HasPrefix(err.Error(), "ADMIN_TOKEN ") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("without an admin token: %v", err)
	}
	s.AdminToken = "admin"
	c, err := s.Load()
	if err != nil || c.Embedded() || c.OpenRegistration {
		t.Errorf("%+v, %v, want registration closed", c, err)
	}
	s.Registration = "open"
	if c, err = s.Load(); err != nil || !c.OpenRegistration {
		t.Errorf("%+v, %v, want registration open", c, err)
	}
	if c, err = parse(t, "--registration=closed").Load(); err != nil || c.OpenRegistration {
		t.Errorf("private database: %+v, %v, want registration closed", c, err)
	}
}

func TestLoadDatabase_ChecksOnlyTheDatabase(t *testing.T) {
	t.Parallel()
	broken := config.Settings{Addr: "nowhere", MaxFiles: "none", DatabaseURL: "postgres://h/d", DataDir: "d"}
	if url, dir, err := broken.LoadDatabase(); err != nil || url != broken.DatabaseURL || dir != "d" {
		t.Errorf("%q, %q, %v", url, dir, err)
	}
	broken.DatabaseURL, broken.DataDir = "postgres://u:hunter2@[", ""
	_, _, err := broken.LoadDatabase()
	if err == nil || strings.Contains(err.Error(), "hunter2") || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("%v, want a line on DATABASE_URL and one on DATA_DIR, and no password", err)
	}
}

func TestLoadRetention_ChecksOnlyWhatSweepingNeeds(t *testing.T) {
	t.Parallel()
	s := config.Settings{
		Addr: "nowhere", MaxFiles: "none", AckRetention: "0s", ActivityRetention: "1h", SweepInterval: "never", LogFormat: "none",
	}
	c, err := s.LoadRetention()
	if want := (config.Config{ActivityRetention: time.Hour}); err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v, %v\nwant %+v", c, err, want)
	}
	s.AckRetention, s.ActivityRetention = "x", "x"
	if _, err := s.LoadRetention(); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("%v, want a line on each of them", err)
	}
}
