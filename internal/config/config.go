// Package config turns flags and environment variables into one Config.
//
// Every setting is a flag and a variable of the same name: --max-files and MAX_FILES. Load reports all invalid values
// at once, each in a sentence that says what to write instead. Errors never contain secrets or URLs that may hold one.
//
// Nothing else in the platform reads the environment, with two exceptions: the OpenTelemetry library reads the
// variables that OpenTelemetry defines, and the object store's client reads its credentials. The package checks
// syntax and ranges only; it connects to nothing.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/lib/pq"
)

// Settings are the flags as they were given; kong fills them. All fields are strings, so that kong accepts every value
// and Load can report all invalid ones together. The help texts are also the table of settings in the documentation.
type Settings struct {
	Addr               string `group:"serving" env:"ADDR" default:"127.0.0.1:8080" placeholder:"HOST:PORT" help:"Address and port to listen on."`
	DatabaseURL        string `group:"storing" env:"DATABASE_URL" placeholder:"URL" help:"PostgreSQL database to use; run 'platform migrate up' before the first start. Empty: a private PostgreSQL under DATA_DIR, migrated on every start."`
	DatabaseDirectURL  string `group:"storing" env:"DATABASE_DIRECT_URL" placeholder:"URL" help:"Address of PostgreSQL itself when DATABASE_URL is a pooler in transaction mode, such as PgBouncer; used for LISTEN/NOTIFY, migrations and whatever else needs a session. Empty: DATABASE_URL leads to PostgreSQL itself."`
	DatabaseQueryConns string `group:"storing" env:"DATABASE_QUERY_CONNS" default:"11" placeholder:"N" help:"Maximum number of database connections per replica for everything except writing files. From 4 to 1000. A replica also opens DATABASE_FILE_CONNS and 4 more: 23 by default, so that PostgreSQL's default of 100 carries three replicas and a rolling upgrade."`
	DatabaseFileConns  string `group:"storing" env:"DATABASE_FILE_CONNS" default:"8" placeholder:"N" help:"Maximum number of database connections per replica that write the bytes of files, and so of files written at once; further uploads wait in SPOOL_DIR. From 2 to 1000. Each takes a few MiB of memory."`
	DataDir            string `group:"storing" env:"DATA_DIR" default:"data" placeholder:"DIR" help:"Folder of the private PostgreSQL and the generated admin token."`
	SpoolDir           string `group:"storing" env:"SPOOL_DIR" placeholder:"DIR" help:"Folder for the temporary files of uploads in flight. Empty: the system's temporary folder."`
	StorageURL         string `group:"storing" name:"storage-url" env:"STORAGE_URL" placeholder:"URL" help:"Where the bytes of new files go: s3://bucket?region=... (Amazon), s3://bucket?endpoint=https://... (MinIO, Ceph and others; Google Cloud Storage: https://storage.googleapis.com) or file:///folder. Empty: PostgreSQL. Credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (for Google, an HMAC key), a profile or the machine's role."`
	StorageInlineBytes string `group:"storing" name:"storage-inline-bytes" env:"STORAGE_INLINE_BYTES" default:"64KiB" placeholder:"SIZE" help:"Maximum size of a file that is stored in PostgreSQL even when STORAGE_URL is set. From 0 to 1MiB."`
	StorageRedirect    string `group:"storing" name:"storage-redirect" env:"STORAGE_REDIRECT" default:"false" placeholder:"true|false" help:"Whether a download is redirected to a short-lived signed URL of the object store, if the client asks for that."`
	AdminToken         string `group:"access" env:"ADMIN_TOKEN" placeholder:"TOKEN" help:"Bearer token of the operator and the canvas, at least 32 characters unless ADDR is loopback. Required with DATABASE_URL; otherwise generated on first start and kept in DATA_DIR. Prefer the variable: flags are visible in process lists."`
	Registration       string `group:"access" env:"REGISTRATION" placeholder:"open|closed" help:"Whether an unknown workspace may register without a token. Empty: open on the private PostgreSQL, closed with DATABASE_URL."`
	PublicURL          string `group:"access" name:"public-url" env:"PUBLIC_URL" placeholder:"URL" help:"Address under which clients reach the platform, such as https://platform.example, without a path. While registration is open on a loopback address, its host is allowed beside localhost. Empty: none."`
	CORSOrigins        string `group:"access" name:"cors-origins" env:"CORS_ORIGINS" placeholder:"ORIGIN,..." help:"Origins from which browsers may call the API, such as https://canvas.example, or * for any (then without cookies). Empty: http://localhost:3000 and http://localhost:3001 on the private PostgreSQL, none with DATABASE_URL."`
	TrustedProxies     string `group:"access" env:"TRUSTED_PROXIES" placeholder:"CIDR,..." help:"Reverse proxies whose X-Forwarded-For header is trusted for the client's address. Empty: none."`
	PushAllowCIDRs     string `group:"access" name:"push-allow-cidrs" env:"PUSH_ALLOW_CIDRS" placeholder:"CIDR,..." help:"Networks outside the public internet in which push workspaces may be called. Empty: only public addresses."`
	MaxFileBytes       string `group:"limits" env:"MAX_FILE_BYTES" default:"100MiB" placeholder:"SIZE" help:"Maximum size of one file; above that, 413."`
	MaxRequestBytes    string `group:"limits" env:"MAX_REQUEST_BYTES" default:"100MiB" placeholder:"SIZE" help:"Maximum size of one upload, the sum of its files; above that, 413."`
	MaxFiles           string `group:"limits" env:"MAX_FILES" default:"64" placeholder:"N" help:"Maximum number of files in one upload; above that, 400."`
	MaxUploads         string `group:"limits" env:"MAX_UPLOADS" default:"256" placeholder:"N" help:"Maximum number of concurrent uploads per replica; above that, 503 with Retry-After."`
	MaxDownloads       string `group:"limits" env:"MAX_DOWNLOADS" default:"256" placeholder:"N" help:"Maximum number of concurrent downloads per replica; above that, 503 with Retry-After."`
	MaxMessages        string `group:"limits" env:"MAX_MESSAGES" default:"256" placeholder:"N" help:"Maximum number of messages per replica that wait for the answer of a push workspace; above that, 503 with Retry-After."`
	MaxWaits           string `group:"limits" env:"MAX_WAITS" default:"20000" placeholder:"N" help:"Maximum number of held inbox polls (wait) per replica; above that, 503 with Retry-After."`
	MaxStreams         string `group:"limits" env:"MAX_STREAMS" default:"1000" placeholder:"N" help:"Maximum number of open event streams per replica; above that, 503 with Retry-After."`
	MaxJSONBytes       string `group:"limits" name:"max-json-bytes" env:"MAX_JSON_BYTES" default:"32MiB" placeholder:"SIZE" help:"Maximum size of all messages and inbox pages held in memory at once, per replica; above that, 503 with Retry-After. At least 8MiB."`
	SpoolBytes         string `group:"limits" env:"SPOOL_BYTES" default:"4GiB" placeholder:"SIZE" help:"Maximum size of all concurrent uploads to poll workspaces, in memory and temporary files, per replica; above that, 503 with Retry-After. At least 4/3 of MAX_REQUEST_BYTES."`
	RateLimit          string `group:"limits" env:"RATE_LIMIT" default:"100" placeholder:"N" help:"Requests per second with one token, with bursts of 30 times as many, per replica; above that, 429 with Retry-After. Registrations without a token are limited per client address. 0: no limit."`
	PendingTTL         string `group:"limits" name:"pending-ttl" env:"PENDING_TTL" default:"24h" placeholder:"TIME" help:"Time after which a staged file that was not acknowledged expires."`
	AckRetention       string `group:"keeping" env:"ACK_RETENTION" default:"1h" placeholder:"TIME" help:"Time that a file is kept after it was acknowledged."`
	ActivityRetention  string `group:"keeping" env:"ACTIVITY_RETENTION" default:"168h" placeholder:"TIME" help:"Time that inbox rows are kept after the workspace has read past them. Unread rows are kept for 30 days, or for this time if it is longer."`
	SweepInterval      string `group:"keeping" env:"SWEEP_INTERVAL" default:"5m" placeholder:"TIME" help:"Time between two sweeps, which delete expired and acknowledged files and old inbox rows."`
	QuotaBytes         string `group:"keeping" env:"QUOTA_BYTES" default:"1GiB" placeholder:"SIZE" help:"Maximum size of all unacknowledged files of one workspace; above that, 507."`
	QuotaFiles         string `group:"keeping" env:"QUOTA_FILES" default:"1000" placeholder:"N" help:"Maximum number of unacknowledged files of one workspace; above that, 507."`
	DrainDelay         string `group:"serving" env:"DRAIN_DELAY" default:"0s" placeholder:"TIME" help:"Time to go on serving after SIGTERM while GET /readyz answers 503, so that load balancers stop sending requests. Set it longer than the balancer's health check takes to notice."`
	MetricsAddr        string `group:"serving" env:"METRICS_ADDR" placeholder:"HOST:PORT" help:"Separate address and port for GET /metrics, which ADDR then does not serve. Empty: served on ADDR."`
	OTELEndpoint       string `group:"serving" name:"otel-exporter-otlp-endpoint" env:"OTEL_EXPORTER_OTLP_ENDPOINT" placeholder:"URL" help:"Base URL of an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318. Empty, together with the next two: no traces."`
	OTELTracesEndpoint string `group:"serving" name:"otel-exporter-otlp-traces-endpoint" env:"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" placeholder:"URL" help:"Full URL for traces, with its path; takes precedence over OTEL_EXPORTER_OTLP_ENDPOINT."`
	OTELTracesExporter string `group:"serving" name:"otel-traces-exporter" env:"OTEL_TRACES_EXPORTER" placeholder:"otlp|none" help:"Whether traces are exported. Empty: if an endpoint is set. otlp without an endpoint: to http://localhost:4318."`
	OTELDisabled       string `group:"serving" name:"otel-sdk-disabled" env:"OTEL_SDK_DISABLED" placeholder:"true|false" help:"true: export no traces, whatever else is set."`
	LogLevel           string `group:"serving" env:"LOG_LEVEL" default:"info" placeholder:"LEVEL" help:"Minimum level to log: debug, info, warn or error."`
	LogFormat          string `group:"serving" env:"LOG_FORMAT" default:"json" placeholder:"FORMAT" help:"Log format: json or text."`
}

// Config is what the platform runs with.
type Config struct {
	Addr              string
	DatabaseURL       string // "": a private PostgreSQL
	DatabaseDirectURL string // "": DatabaseURL leads to PostgreSQL itself
	DataDir           string
	SpoolDir          string // "": the system's temporary folder
	StorageURL        string // "": PostgreSQL

	StorageInlineBytes int64
	StorageRedirect    bool

	DatabaseQueryConns int
	DatabaseFileConns  int

	AdminToken        string // "": generated on first start
	OpenRegistration  bool
	PublicURL         string // scheme and host, without a trailing slash; "": not set
	CORSOrigins       []string
	TrustedProxies    []string
	PushAllowCIDRs    []netip.Prefix
	MaxFileBytes      int64
	MaxRequestBytes   int64
	MaxFiles          int
	MaxUploads        int
	MaxDownloads      int
	MaxMessages       int
	MaxWaits          int
	MaxStreams        int
	MaxJSONBytes      int64
	SpoolBytes        int64
	RateLimit         float64 // requests per second with one token; 0: no limit
	PendingTTL        time.Duration
	AckRetention      time.Duration
	ActivityRetention time.Duration
	SweepInterval     time.Duration
	QuotaBytes        int64
	QuotaFiles        int
	DrainDelay        time.Duration
	MetricsAddr       string // "": on Addr
	TracesEndpoint    string // URL; "": no traces
	LogLevel          slog.Level
	LogFormat         string // json or text
	Version           string // of the binary, for logs, metrics and traces; Load does not set it
}

// The bounds of the settings. They catch typing errors; they do not restrict operators.
const (
	maxBytes      = 1 << 40
	maxFiles      = 10_000
	maxInFlight   = 100_000
	maxQuotaFiles = 1_000_000
	minJSONBytes  = 8 << 20 // three quarters of it hold the largest inbox page, with its last row
	maxTTL        = 365 * 24 * time.Hour
	minRate       = 0.001
	maxRate       = 1_000_000
)

// Embedded reports whether the platform starts a private PostgreSQL.
func (c Config) Embedded() bool { return c.DatabaseURL == "" }

// Load checks the settings. The error names every invalid one, one line each.
func (s Settings) Load() (Config, error) {
	var l loader
	c := Config{
		Addr:              l.address("ADDR", s.Addr),
		DatabaseURL:       l.database("DATABASE_URL", s.DatabaseURL),
		DatabaseDirectURL: l.database("DATABASE_DIRECT_URL", s.DatabaseDirectURL),
		DataDir:           l.required("DATA_DIR", s.DataDir),
		SpoolDir:          l.writable("SPOOL_DIR", s.SpoolDir),
		StorageURL:        l.storage("STORAGE_URL", s.StorageURL),
		StorageRedirect:   l.oneOf("STORAGE_REDIRECT", s.StorageRedirect, "true", "false") == "true",
		AdminToken:        l.token("ADMIN_TOKEN", s.AdminToken),
		PublicURL:         l.publicURL("PUBLIC_URL", s.PublicURL),
		CORSOrigins:       l.origins("CORS_ORIGINS", s.CORSOrigins),
		PushAllowCIDRs:    l.prefixes("PUSH_ALLOW_CIDRS", s.PushAllowCIDRs),
		MaxFileBytes:      l.size("MAX_FILE_BYTES", s.MaxFileBytes),
		MaxRequestBytes:   l.size("MAX_REQUEST_BYTES", s.MaxRequestBytes),
		MaxFiles:          l.count("MAX_FILES", s.MaxFiles, maxFiles),
		MaxUploads:        l.count("MAX_UPLOADS", s.MaxUploads, maxInFlight),
		MaxDownloads:      l.count("MAX_DOWNLOADS", s.MaxDownloads, maxInFlight),
		MaxMessages:       l.count("MAX_MESSAGES", s.MaxMessages, maxInFlight),
		MaxWaits:          l.count("MAX_WAITS", s.MaxWaits, maxInFlight),
		MaxStreams:        l.count("MAX_STREAMS", s.MaxStreams, maxInFlight),
		MaxJSONBytes:      l.size("MAX_JSON_BYTES", s.MaxJSONBytes),
		SpoolBytes:        l.size("SPOOL_BYTES", s.SpoolBytes),
		RateLimit:         l.rate("RATE_LIMIT", s.RateLimit),
		PendingTTL:        l.duration("PENDING_TTL", s.PendingTTL),
		AckRetention:      l.age("ACK_RETENTION", s.AckRetention),
		ActivityRetention: l.age("ACTIVITY_RETENTION", s.ActivityRetention),
		SweepInterval:     l.duration("SWEEP_INTERVAL", s.SweepInterval),
		QuotaBytes:        l.size("QUOTA_BYTES", s.QuotaBytes),
		QuotaFiles:        l.count("QUOTA_FILES", s.QuotaFiles, maxQuotaFiles),
		DrainDelay:        l.age("DRAIN_DELAY", s.DrainDelay),
		TracesEndpoint:    l.traces(s),
		LogFormat:         l.oneOf("LOG_FORMAT", s.LogFormat, "json", "text"),
	}
	c.DatabaseQueryConns = l.conns("DATABASE_QUERY_CONNS", s.DatabaseQueryConns, minQueryConns)
	c.DatabaseFileConns = l.conns("DATABASE_FILE_CONNS", s.DatabaseFileConns, minFileConns)
	c.StorageInlineBytes = l.inline("STORAGE_INLINE_BYTES", s.StorageInlineBytes)
	if s.MetricsAddr != "" {
		c.MetricsAddr = l.address("METRICS_ADDR", s.MetricsAddr)
	}
	if c.Embedded() && s.CORSOrigins == "" {
		c.CORSOrigins = []string{"http://localhost:3000", "http://localhost:3001"} // where the canvas is developed
	}
	for _, p := range l.prefixes("TRUSTED_PROXIES", s.TrustedProxies) {
		c.TrustedProxies = append(c.TrustedProxies, p.String())
	}
	if err := c.LogLevel.UnmarshalText([]byte(s.LogLevel)); err != nil {
		l.invalid("LOG_LEVEL", s.LogLevel, "debug, info, warn or error")
	}
	if c.MaxJSONBytes > 0 && c.MaxJSONBytes < minJSONBytes {
		l.invalid("MAX_JSON_BYTES", s.MaxJSONBytes, "at least 8MiB, so that the largest inbox page fits into the share of one workspace")
	}
	if c.SpoolBytes > 0 && c.SpoolBytes/4*3 < c.MaxRequestBytes {
		l.invalid("SPOOL_BYTES", s.SpoolBytes, "at least 4/3 of MAX_REQUEST_BYTES ("+s.MaxRequestBytes+"), or the largest upload never fits into the share of one workspace")
	}
	registration := s.Registration
	if registration == "" {
		registration = "closed"
		if c.Embedded() {
			registration = "open"
		}
	}
	c.OpenRegistration = l.oneOf("REGISTRATION", registration, "open", "closed") == "open"
	if s.DatabaseURL != "" && s.AdminToken == "" {
		l.errs = append(l.errs, errors.New("ADMIN_TOKEN is empty, and required because DATABASE_URL is set; "+
			"write a long random string, for example from 'openssl rand -hex 32'"))
	}
	l.strongToken(s)
	l.directURL(s)
	return c, errors.Join(l.errs...)
}

// LoadDatabase is Load for commands that need only the database. databaseURL leads to PostgreSQL itself, past a pooler,
// because these commands hold session locks; "" stands for the private PostgreSQL in dataDir.
func (s Settings) LoadDatabase() (databaseURL, dataDir string, err error) {
	var l loader
	databaseURL, dataDir = l.database("DATABASE_URL", s.DatabaseURL), l.required("DATA_DIR", s.DataDir)
	if direct := l.database("DATABASE_DIRECT_URL", s.DatabaseDirectURL); direct != "" {
		databaseURL = direct
	}
	l.directURL(s)
	return databaseURL, dataDir, errors.Join(l.errs...)
}

// directURL refuses a direct URL without a pooler's: the platform would silently use the private PostgreSQL.
func (l *loader) directURL(s Settings) {
	if s.DatabaseDirectURL != "" && s.DatabaseURL == "" {
		l.errs = append(l.errs, errors.New("DATABASE_DIRECT_URL is set and DATABASE_URL is empty; write the pooler's URL into DATABASE_URL, "+
			"or, without a pooler, set only DATABASE_URL"))
	}
}

// LoadRetention is Load for commands that sweep. It sets only AckRetention and ActivityRetention.
func (s Settings) LoadRetention() (Config, error) {
	var l loader
	c := Config{
		AckRetention:      l.age("ACK_RETENTION", s.AckRetention),
		ActivityRetention: l.age("ACTIVITY_RETENTION", s.ActivityRetention),
	}
	return c, errors.Join(l.errs...)
}

// A loader parses values and collects the errors.
type loader struct{ errs []error }

func (l *loader) invalid(name, value, want string) {
	l.errs = append(l.errs, fmt.Errorf("%s is %q; write %s", name, value, want))
}

func (l *loader) required(name, value string) string {
	if value == "" {
		l.invalid(name, value, "a folder")
	}
	return value
}

// writable accepts "" or a folder in which a file can be created.
func (l *loader) writable(name, value string) string {
	if value == "" {
		return ""
	}
	f, err := os.CreateTemp(value, "writable-*")
	if err != nil {
		l.invalid(name, value, "a folder that exists and is writable")
		return value
	}
	_ = f.Close()
	_ = os.Remove(f.Name())
	return value
}

func (l *loader) address(name, value string) string {
	_, port, err := net.SplitHostPort(value)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n > 65535 {
		l.invalid(name, value, "host:port, such as 127.0.0.1:8080 or :8080")
	}
	return value
}

// database does not repeat the value in the error: it may hold a password.
func (l *loader) database(name, value string) string {
	if value == "" {
		return ""
	}
	if _, err := pq.NewConfig(value); err != nil {
		l.errs = append(l.errs, fmt.Errorf("%s cannot be parsed; write postgres://user:password@host:5432/database?sslmode=require", name))
	}
	return value
}

// token does not repeat the value in the error: it is a secret.
func (l *loader) token(name, value string) string {
	if !visible(value) {
		l.errs = append(l.errs, fmt.Errorf("%s has characters that an HTTP header cannot carry; write visible ASCII without spaces", name))
	}
	return value
}

func (l *loader) origins(name, value string) []string {
	origins := list(value)
	for _, o := range origins {
		u, err := url.Parse(o)
		if o != "*" && (err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || o != u.Scheme+"://"+u.Host ||
			strings.Contains(u.Host, "*")) { // origins are compared literally, so a pattern would match nothing
			l.invalid(name, o, "origins such as https://canvas.example, without a path, separated by commas, or *")
		}
	}
	return origins
}

func (l *loader) prefixes(name, value string) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, s := range list(value) {
		if a, err := netip.ParseAddr(s); err == nil {
			prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
		} else if p, err := netip.ParsePrefix(s); err == nil {
			prefixes = append(prefixes, p.Masked())
		} else {
			l.invalid(name, s, "networks such as 10.1.0.0/16 or fd00::/8, separated by commas")
		}
	}
	return prefixes
}

func (l *loader) size(name, value string) int64 {
	n, err := humanize.ParseBytes(value)
	if err != nil || n < 1 || n > maxBytes {
		l.invalid(name, value, "a size from 1 to 1TiB, such as 100MiB or 104857600")
		return 0
	}
	return int64(n)
}

func (l *loader) count(name, value string, maximum int) int {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > maximum {
		l.invalid(name, value, fmt.Sprintf("a whole number from 1 to %d", maximum))
	}
	return n
}

// rate accepts a number of requests per second, which may be below 1, or 0.
func (l *loader) rate(name, value string) float64 {
	n, err := strconv.ParseFloat(value, 64)
	if err != nil || n != 0 && !(n >= minRate && n <= maxRate) { // also false for NaN
		l.invalid(name, value, "a number of requests per second from 0.001 to 1000000, or 0 for no limit")
	}
	return n
}

func (l *loader) duration(name, value string) time.Duration {
	d, err := time.ParseDuration(value)
	if err != nil || d < time.Second || d > maxTTL {
		l.invalid(name, value, "a duration from 1s to 8760h, such as 24h or 90m")
	}
	return d
}

// age is a duration that may be 0.
func (l *loader) age(name, value string) time.Duration {
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 || d > maxTTL {
		l.invalid(name, value, "a duration from 0s to 8760h, such as 1h or 90m")
	}
	return d
}

func (l *loader) oneOf(name, value string, allowed ...string) string {
	for _, a := range allowed {
		if value == a {
			return value
		}
	}
	l.invalid(name, value, strings.Join(allowed, " or "))
	return value
}

// list splits at commas and drops empty items.
func list(value string) []string {
	var items []string
	for item := range strings.SplitSeq(value, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}
