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

const storageForms = "s3://bucket?region=eu-central-1, s3://bucket?endpoint=https://minio.example:9000 or file:///folder"

// formerStores were supported by earlier builds; the text says what to use instead.
var formerStores = map[string]string{
	"gs": "names Google Cloud Storage by its own protocol, which is no longer supported; use its S3 interface: " +
		"s3://bucket?endpoint=https://storage.googleapis.com, with an HMAC key of a service account in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
	"azblob": "names Azure Blob Storage, which is no longer supported; use a bucket of a store that speaks S3, or a folder (file:///folder)",
}

// storageParameters are the parameters that the URL of a bucket may have.
var storageParameters = []string{
	"endpoint", "kmskeyid", "prefix", "profile", "region", "request_checksum_calculation", "response_checksum_validation", "ssetype", "use_path_style",
}

// harmlessParameter has a name that looks like a secret, but holds none.
const harmlessParameter = "kmskeyid"

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
			if strings.Contains(lower, word) && lower != harmlessParameter {
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
	case formerStores[u.Scheme] != "":
		return invalid("%s", formerStores[u.Scheme])
	case u.Scheme != "s3":
		return invalid("is not a supported store; write %s", storageForms)
	case u.Host == "" || u.Path != "":
		return invalid("must have the name of a bucket and no path; for a folder in the bucket write ?prefix=folder/")
	}
	for parameter := range q {
		if !slices.Contains(storageParameters, parameter) {
			return invalid("has the parameter %q, which is not known; known are %s", parameter, strings.Join(storageParameters, ", "))
		}
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
