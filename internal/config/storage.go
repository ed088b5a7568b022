package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
)

// maxInlineBytes is one row: what is longer is better off in the store.
const maxInlineBytes = 1 << 20

const storageForms = "s3://bucket?region=eu-central-1, s3://bucket?endpoint=https://minio.example:9000 or file:///folder"

// Stores that earlier builds knew, and what to use instead.
var formerStores = map[string]string{
	"gs": "names Google Cloud Storage by its own protocol, which is no longer supported; use its S3 interface: " +
		"s3://bucket?endpoint=https://storage.googleapis.com, with an HMAC key of a service account in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
	"azblob": "names Azure Blob Storage, which is no longer supported; use a bucket of a store that speaks S3, or a folder (file:///folder)",
}

// storageParameters are those that a URL of a bucket may have.
var storageParameters = []string{
	"endpoint", "kmskeyid", "prefix", "profile", "region", "request_checksum_calculation", "response_checksum_validation", "ssetype", "use_path_style",
}

// harmlessParameter looks like a secret by its name, and is none.
const harmlessParameter = "kmskeyid"

// storage takes the URL of a store, or "". It does not repeat the value: it may hold a secret, which
// must not get into the database, where the URL is kept.
func (l *loader) storage(name, value string) string {
	if value == "" {
		return ""
	}
	bad := func(format string, args ...any) string {
		l.errs = append(l.errs, fmt.Errorf(name+" "+format, args...))
		return value
	}
	u, err := url.Parse(value)
	if err != nil || u.Opaque != "" {
		return bad("cannot be read; write %s", storageForms)
	}
	if u.User != nil || u.Fragment != "" {
		return bad("has a user, a password or a fragment; credentials come from the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("has parameters that cannot be read")
	}
	for parameter := range q {
		lower := strings.ToLower(parameter)
		for _, word := range []string{"secret", "key", "token", "password", "sig", "credential"} {
			if strings.Contains(lower, word) && lower != harmlessParameter {
				return bad("has the parameter %q; credentials come from the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", parameter)
			}
		}
		if endpoint, err := url.Parse(q.Get(parameter)); err != nil && lower == "endpoint" || err == nil && endpoint.User != nil {
			return bad("has a parameter %q that is no URL, or one with a user or a password", parameter)
		}
	}
	switch {
	case u.Scheme == "file" && (u.Host != "" || u.Path == "" || u.RawQuery != ""):
		return bad("is no folder; write file:///var/lib/molecule/objects, with three slashes and nothing after it")
	case u.Scheme == "file":
	case formerStores[u.Scheme] != "":
		return bad("%s", formerStores[u.Scheme])
	case u.Scheme != "s3":
		return bad("is no store that the platform knows; write %s", storageForms)
	case u.Host == "" || u.Path != "":
		return bad("must have the name of a bucket and no path; a folder in it is ?prefix=folder/")
	}
	for parameter := range q {
		if !slices.Contains(storageParameters, parameter) {
			return bad("has the parameter %q, which is not known; known are %s", parameter, strings.Join(storageParameters, ", "))
		}
	}
	return value
}

// inline takes how long a file may be that is kept in its row.
func (l *loader) inline(name, value string) int64 {
	n, err := humanize.ParseBytes(value)
	if err != nil || n > maxInlineBytes {
		l.bad(name, value, "a size from 0 to 1MiB, such as 64KiB")
	}
	return int64(n)
}

// LoadStorage is Load for commands that look after stores. Of the Config only what they need is set.
func (s Settings) LoadStorage() (Config, error) {
	var l loader
	c := Config{StorageURL: l.storage("STORAGE_URL", s.StorageURL), StorageInlineBytes: l.inline("STORAGE_INLINE_BYTES", s.StorageInlineBytes)}
	return c, errors.Join(l.errs...)
}
