package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
)

// maxInlineBytes is the size of one row of content. A larger file would take several rows; an object serves it better.
const maxInlineBytes = 1 << 20

const storageForms = "s3://bucket?region=eu-central-1, s3://bucket?endpoint=https://minio.example:9000, gs://bucket, azblob://container or file:///folder"

// harmlessParameters of a store's URL have names that look like secrets, but hold none.
var harmlessParameters = []string{"kmskeyid", "web_identity_token_file"}

// storage accepts "" or the URL of a store. A URL with a secret is refused, because the URL is stored in the database.
// The error does not repeat the value, for the same reason.
func (l *loader) storage(name, value string) string {
	if value == "" {
		return ""
	}
	invalid := func(format string, args ...any) string {
		l.errs = append(l.errs, fmt.Errorf(name+" "+format, args...))
		return value
	}
	u, err := url.Parse(value)
	if err != nil || u.Opaque != "" {
		return invalid("cannot be parsed; write %s", storageForms)
	}
	if u.User != nil || u.Fragment != "" {
		return invalid("has a user, a password or a fragment; credentials come from the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return invalid("has parameters that cannot be parsed; percent-encode them")
	}
	for parameter := range q {
		lower := strings.ToLower(parameter)
		for _, word := range []string{"secret", "key", "token", "password", "sig", "credential"} {
			if strings.Contains(lower, word) && !slices.Contains(harmlessParameters, lower) {
				return invalid("has the parameter %q; credentials come from the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", parameter)
			}
		}
		if endpoint, err := url.Parse(q.Get(parameter)); err != nil && lower == "endpoint" || err == nil && endpoint.User != nil {
			return invalid("has the parameter %q, which is not a URL or has a user or a password; write a URL without them", parameter)
		}
	}
	switch {
	case u.Scheme == "file" && (u.Host != "" || u.Path == "" || u.RawQuery != ""):
		return invalid("is not a folder; write file:///var/lib/molecule/objects, with three slashes and no parameters")
	case u.Scheme == "file":
	case !slices.Contains([]string{"s3", "gs", "azblob"}, u.Scheme):
		return invalid("is not a supported store; write %s", storageForms)
	case u.Host == "" || u.Path != "":
		return invalid("must have the name of a bucket and no path; for a folder in the bucket write ?prefix=folder/")
	}
	return value
}

// inline accepts the maximum size of a file that is kept in PostgreSQL.
func (l *loader) inline(name, value string) int64 {
	n, err := humanize.ParseBytes(value)
	if err != nil || n > maxInlineBytes {
		l.invalid(name, value, "a size from 0 to 1MiB, such as 64KiB")
	}
	return int64(n)
}

// LoadStorage is Load for the storage commands. It sets only StorageURL and StorageInlineBytes.
func (s Settings) LoadStorage() (Config, error) {
	var l loader
	c := Config{StorageURL: l.storage("STORAGE_URL", s.StorageURL), StorageInlineBytes: l.inline("STORAGE_INLINE_BYTES", s.StorageInlineBytes)}
	return c, errors.Join(l.errs...)
}
