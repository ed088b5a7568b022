// Package config turns flags and environment variables into one Config. Nothing else in
// the platform reads the environment, but for OpenTelemetry's library, which reads those that
// OpenTelemetry defines for it.
//
// Every setting is a flag and a variable of the same name, --max-files and MAX_FILES. Load
// reports all that is wrong at once, each in a sentence that says what to write instead.
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

// Settings are the flags as they were given; kong fills them. They are all strings, so
// that a bad one does not keep Load from looking at the others.
type Settings struct {
	Addr               string `group:"serving" env:"ADDR" default:"127.0.0.1:8080" placeholder:"HOST:PORT" help:"Address to serve on."`
	DatabaseURL        string `group:"storing" env:"DATABASE_URL" placeholder:"URL" help:"PostgreSQL to use, migrated by 'platform migrate up'. Empty: a private PostgreSQL under the data folder, migrated on start."`
	DatabaseDirectURL  string `group:"storing" env:"DATABASE_DIRECT_URL" placeholder:"URL" help:"PostgreSQL itself, if DATABASE_URL is a pooler in transaction mode such as PgBouncer: for news between replicas, migrations, and what else needs a session. Empty: DATABASE_URL leads to PostgreSQL itself."`
	DatabaseQueryConns string `group:"storing" env:"DATABASE_QUERY_CONNS" default:"12" placeholder:"N" help:"Connections per replica to DATABASE_URL for everything but writing files. From 4 to 1000. Each replica takes this, DATABASE_FILE_CONNS and 3 more: by default 23, so that PostgreSQL's default of 100 carries three replicas and a rolling upgrade."`
	DatabaseFileConns  string `group:"storing" env:"DATABASE_FILE_CONNS" default:"8" placeholder:"N" help:"Connections per replica that write the bytes of files; as many uploads are written at once, and the others wait in SPOOL_DIR. From 2 to 1000. More of them take more memory."`
	DataDir            string `group:"storing" env:"DATA_DIR" default:"data" placeholder:"DIR" help:"Folder of the private PostgreSQL and its admin token."`
	SpoolDir           string `group:"storing" env:"SPOOL_DIR" placeholder:"DIR" help:"Folder for the temporary files of uploads in flight. Empty: the system's."`
	StorageURL         string `group:"storing" name:"storage-url" env:"STORAGE_URL" placeholder:"URL" help:"Where the bytes of new files go: s3://bucket?region=..., s3://bucket?endpoint=https://..., gs://bucket, azblob://container or file:///folder. Empty: PostgreSQL. Credentials come from the environment, as each cloud's tools take them."`
	StorageInlineBytes string `group:"storing" name:"storage-inline-bytes" env:"STORAGE_INLINE_BYTES" default:"64KiB" placeholder:"SIZE" help:"Files no longer than this stay in PostgreSQL whatever STORAGE_URL is. At most 1MiB."`
	StorageRedirect    string `group:"storing" name:"storage-redirect" env:"STORAGE_REDIRECT" default:"false" placeholder:"true|false" help:"Whether clients that ask for it are sent to a short-lived URL of the store for a file's bytes."`
	AdminToken         string `group:"access" env:"ADMIN_TOKEN" placeholder:"TOKEN" help:"Token of the operator and the canvas. Required with a database URL; otherwise made on first start and kept in the data folder. Prefer the variable: flags show in process lists."`
	Registration       string `group:"access" env:"REGISTRATION" placeholder:"open|closed" help:"Whether an unknown workspace may register without a token. Empty: open on the private PostgreSQL, closed otherwise."`
	CORSOrigins        string `group:"access" name:"cors-origins" env:"CORS_ORIGINS" placeholder:"ORIGIN,..." help:"Origins from which browsers may call, such as https://canvas.example, or *."`
	TrustedProxies     string `group:"access" env:"TRUSTED_PROXIES" placeholder:"CIDR,..." help:"Reverse proxies whose X-Forwarded-For is believed."`
	PushAllowCIDRs     string `group:"access" name:"push-allow-cidrs" env:"PUSH_ALLOW_CIDRS" placeholder:"CIDR,..." help:"Networks that are not on the public internet, but in which push workspaces may be called."`
	MaxFileBytes       string `group:"limits" env:"MAX_FILE_BYTES" default:"100MiB" placeholder:"SIZE" help:"Longest file."`
	MaxRequestBytes    string `group:"limits" env:"MAX_REQUEST_BYTES" default:"100MiB" placeholder:"SIZE" help:"All files of one upload together."`
	MaxFiles           string `group:"limits" env:"MAX_FILES" default:"64" placeholder:"N" help:"Files in one upload."`
	MaxUploads         string `group:"limits" env:"MAX_UPLOADS" default:"256" placeholder:"N" help:"Uploads in flight; more are asked to come back."`
	MaxDownloads       string `group:"limits" env:"MAX_DOWNLOADS" default:"256" placeholder:"N" help:"Files being fetched; more are asked to come back."`
	MaxMessages        string `group:"limits" env:"MAX_MESSAGES" default:"256" placeholder:"N" help:"Messages that push workspaces are working on; more are asked to come back."`
	MaxWaits           string `group:"limits" env:"MAX_WAITS" default:"20000" placeholder:"N" help:"Inbox polls that are held until there is something; more are asked to come back."`
	MaxStreams         string `group:"limits" env:"MAX_STREAMS" default:"1000" placeholder:"N" help:"Open streams of events; more are asked to come back."`
	MaxJSONBytes       string `group:"limits" name:"max-json-bytes" env:"MAX_JSON_BYTES" default:"32MiB" placeholder:"SIZE" help:"Messages and inbox pages held in memory at once; more are asked to come back. At least 4MiB."`
	SpoolBytes         string `group:"limits" env:"SPOOL_BYTES" default:"4GiB" placeholder:"SIZE" help:"Uploads in flight to poll workspaces together, in memory and temporary files; more are asked to come back. At least MAX_REQUEST_BYTES."`
	RateLimit          string `group:"limits" env:"RATE_LIMIT" default:"100" placeholder:"N" help:"Requests a second with one token, and 30 times as many at once after a pause; more are asked to come back. Registrations without a token are limited by address. 0: neither is limited."`
	PendingTTL         string `group:"limits" name:"pending-ttl" env:"PENDING_TTL" default:"24h" placeholder:"TIME" help:"How long a file waits to be acknowledged."`
	AckRetention       string `group:"keeping" env:"ACK_RETENTION" default:"1h" placeholder:"TIME" help:"How long a file stays after it was acknowledged."`
	ActivityRetention  string `group:"keeping" env:"ACTIVITY_RETENTION" default:"168h" placeholder:"TIME" help:"How long inbox rows stay that their workspace has read; unread ones stay for 30 days, or this if it is longer."`
	SweepInterval      string `group:"keeping" env:"SWEEP_INTERVAL" default:"5m" placeholder:"TIME" help:"How often what is over is deleted."`
	QuotaBytes         string `group:"keeping" env:"QUOTA_BYTES" default:"1GiB" placeholder:"SIZE" help:"Unacknowledged files of a workspace together."`
	QuotaFiles         string `group:"keeping" env:"QUOTA_FILES" default:"1000" placeholder:"N" help:"Unacknowledged files of a workspace."`
	DrainDelay         string `group:"serving" env:"DRAIN_DELAY" default:"0s" placeholder:"TIME" help:"How long to go on serving after a signal to stop, while GET /readyz answers 503, so that a balancer sends nothing more: longer than the balancer takes to notice."`
	MetricsAddr        string `group:"serving" env:"METRICS_ADDR" placeholder:"HOST:PORT" help:"Address to serve GET /metrics on, and nowhere else. Empty: it is served beside everything else."`
	OTELEndpoint       string `group:"serving" name:"otel-exporter-otlp-endpoint" env:"OTEL_EXPORTER_OTLP_ENDPOINT" placeholder:"URL" help:"OpenTelemetry collector that takes OTLP over HTTP, such as http://127.0.0.1:4318. Empty, as the next two: no traces."`
	OTELTracesEndpoint string `group:"serving" name:"otel-exporter-otlp-traces-endpoint" env:"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" placeholder:"URL" help:"The same, for traces only, with its path."`
	OTELTracesExporter string `group:"serving" name:"otel-traces-exporter" env:"OTEL_TRACES_EXPORTER" placeholder:"otlp|none" help:"Whether traces are sent. Empty: if there is an endpoint."`
	OTELDisabled       string `group:"serving" name:"otel-sdk-disabled" env:"OTEL_SDK_DISABLED" placeholder:"true|false" help:"Whether no traces are sent whatever else is set."`
	LogLevel           string `group:"serving" env:"LOG_LEVEL" default:"info" placeholder:"LEVEL" help:"Least level to log: debug, info, warn or error."`
	LogFormat          string `group:"serving" env:"LOG_FORMAT" default:"json" placeholder:"FORMAT" help:"Form of log lines: json or text."`
}

// Config is what the platform runs with.
type Config struct {
	Addr              string
	DatabaseURL       string // "": a private PostgreSQL
	DatabaseDirectURL string // "": DatabaseURL is no pooler in transaction mode
	DataDir           string
	SpoolDir          string // "": the system's
	StorageURL        string // "": PostgreSQL

	StorageInlineBytes int64
	StorageRedirect    bool

	DatabaseQueryConns int
	DatabaseFileConns  int

	AdminToken        string // "": made on first start
	OpenRegistration  bool
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
	RateLimit         float64 // requests a second with one token; 0: no limit
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
	Version           string // of the binary, for who looks at it from outside; Load does not set it
}

// The bounds of what can be set. They guard against slips, not against operators.
const (
	maxBytes      = 1 << 40
	maxFiles      = 10_000
	maxInFlight   = 100_000
	maxQuotaFiles = 1_000_000
	minJSONBytes  = 4 << 20 // a page of the inbox and its last row
	maxTTL        = 365 * 24 * time.Hour
	minRate       = 0.001
	maxRate       = 1_000_000
)

// Embedded reports whether the platform brings its own PostgreSQL.
func (c Config) Embedded() bool { return c.DatabaseURL == "" }

// Load checks the settings. The error names every bad one, a line each.
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
	for _, p := range l.prefixes("TRUSTED_PROXIES", s.TrustedProxies) {
		c.TrustedProxies = append(c.TrustedProxies, p.String())
	}
	if err := c.LogLevel.UnmarshalText([]byte(s.LogLevel)); err != nil {
		l.bad("LOG_LEVEL", s.LogLevel, "debug, info, warn or error")
	}
	if c.MaxJSONBytes > 0 && c.MaxJSONBytes < minJSONBytes {
		l.bad("MAX_JSON_BYTES", s.MaxJSONBytes, "at least 4MiB, so that the longest page fits")
	}
	if c.SpoolBytes > 0 && c.SpoolBytes < c.MaxRequestBytes {
		l.bad("SPOOL_BYTES", s.SpoolBytes, "at least what MAX_REQUEST_BYTES is ("+s.MaxRequestBytes+"), or the longest upload is never taken")
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
		l.errs = append(l.errs, errors.New("ADMIN_TOKEN is empty; with DATABASE_URL set it is required: a long random string, for example from 'openssl rand -hex 32'"))
	}
	l.direct(s)
	return c, errors.Join(l.errs...)
}

// LoadDatabase is Load for commands that only need the database, and PostgreSQL itself: they hold
// locks of a session.
func (s Settings) LoadDatabase() (databaseURL, dataDir string, err error) {
	var l loader
	databaseURL, dataDir = l.database("DATABASE_URL", s.DatabaseURL), l.required("DATA_DIR", s.DataDir)
	if direct := l.database("DATABASE_DIRECT_URL", s.DatabaseDirectURL); direct != "" {
		databaseURL = direct
	}
	l.direct(s)
	return databaseURL, dataDir, errors.Join(l.errs...)
}

// direct: the way past a pooler means nothing without the way through it.
func (l *loader) direct(s Settings) {
	if s.DatabaseDirectURL != "" && s.DatabaseURL == "" {
		l.errs = append(l.errs, errors.New("DATABASE_DIRECT_URL is set and DATABASE_URL is empty; write the pooler's address into DATABASE_URL, "+
			"or, if there is none, PostgreSQL's address into DATABASE_URL alone"))
	}
}

// LoadRetention is Load for commands that delete what is over. Of the Config only what they
// need is set.
func (s Settings) LoadRetention() (Config, error) {
	var l loader
	c := Config{
		AckRetention:      l.age("ACK_RETENTION", s.AckRetention),
		ActivityRetention: l.age("ACTIVITY_RETENTION", s.ActivityRetention),
	}
	return c, errors.Join(l.errs...)
}

// A loader parses values and collects what is wrong with them.
type loader struct{ errs []error }

func (l *loader) bad(name, value, want string) {
	l.errs = append(l.errs, fmt.Errorf("%s is %q; write %s", name, value, want))
}

func (l *loader) required(name, value string) string {
	if value == "" {
		l.bad(name, value, "a folder")
	}
	return value
}

// writable takes a folder in which files can be made, or "".
func (l *loader) writable(name, value string) string {
	if value == "" {
		return ""
	}
	f, err := os.CreateTemp(value, "writable-*")
	if err != nil {
		l.bad(name, value, "a folder that exists and can be written to")
		return value
	}
	_ = f.Close()
	_ = os.Remove(f.Name())
	return value
}

func (l *loader) address(name, value string) string {
	_, port, err := net.SplitHostPort(value)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n > 65535 {
		l.bad(name, value, "host:port, such as 127.0.0.1:8080 or :8080")
	}
	return value
}

// database does not repeat the value: it may hold a password.
func (l *loader) database(name, value string) string {
	if value == "" {
		return ""
	}
	if _, err := pq.NewConfig(value); err != nil {
		l.errs = append(l.errs, fmt.Errorf("%s cannot be read; write postgres://user:password@host:5432/database?sslmode=require", name))
	}
	return value
}

// token does not repeat the value: it is a secret.
func (l *loader) token(name, value string) string {
	for _, r := range value {
		if r <= ' ' || r > '~' {
			l.errs = append(l.errs, fmt.Errorf("%s has characters that an HTTP header cannot carry; write visible ASCII without spaces", name))
			break
		}
	}
	return value
}

func (l *loader) origins(name, value string) []string {
	origins := list(value)
	for _, o := range origins {
		u, err := url.Parse(o)
		if o != "*" && (err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || o != u.Scheme+"://"+u.Host ||
			strings.Contains(u.Host, "*")) { // it would be compared as it stands, and match nothing
			l.bad(name, o, "origins such as https://canvas.example, without a path, separated by commas, or *")
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
			l.bad(name, s, "networks such as 10.1.0.0/16 or fd00::/8, separated by commas")
		}
	}
	return prefixes
}

func (l *loader) size(name, value string) int64 {
	n, err := humanize.ParseBytes(value)
	if err != nil || n < 1 || n > maxBytes {
		l.bad(name, value, "a size from 1 to 1TiB, such as 100MiB or 104857600")
		return 0
	}
	return int64(n)
}

func (l *loader) count(name, value string, most int) int {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > most {
		l.bad(name, value, fmt.Sprintf("a whole number from 1 to %d", most))
	}
	return n
}

// rate takes a number of requests a second, which may be less than one, or nothing.
func (l *loader) rate(name, value string) float64 {
	n, err := strconv.ParseFloat(value, 64)
	if err != nil || n != 0 && !(n >= minRate && n <= maxRate) { // NaN is not
		l.bad(name, value, "a number of requests a second from 0.001 to 1000000, or 0 for no limit")
	}
	return n
}

func (l *loader) duration(name, value string) time.Duration {
	d, err := time.ParseDuration(value)
	if err != nil || d < time.Second || d > maxTTL {
		l.bad(name, value, "a time from 1s to 8760h, such as 24h or 90m")
	}
	return d
}

// age is a duration that may be nothing.
func (l *loader) age(name, value string) time.Duration {
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 || d > maxTTL {
		l.bad(name, value, "a time from 0s to 8760h, such as 1h or 90m")
	}
	return d
}

func (l *loader) oneOf(name, value string, allowed ...string) string {
	for _, a := range allowed {
		if value == a {
			return value
		}
	}
	l.bad(name, value, strings.Join(allowed, " or "))
	return value
}

// list splits at commas and drops what is empty.
func list(value string) []string {
	var items []string
	for item := range strings.SplitSeq(value, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}
