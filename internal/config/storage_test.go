package config_test

import (
	"strings"
	"testing"

	"github.com/molecule-ai/platform/internal/config"
)

// Planted faults: each check left out; the value repeated in an error.
func TestStorageURL_IsAStoreWithoutSecrets(t *testing.T) {
	t.Parallel()
	load := func(url string) error {
		_, err := config.Settings{StorageURL: url, StorageInlineBytes: "0"}.LoadStorage()
		return err
	}
	for _, url := range []string{
		"", "file:///var/lib/objects", "s3://bucket", "s3://bucket?region=eu-central-1&kmskeyid=alias",
		"s3://bucket?endpoint=http://127.0.0.1:9000&prefix=a/", "s3://bucket?endpoint=https://storage.googleapis.com",
		"s3://bucket?profile=p&ssetype=AES256&use_path_style=false&request_checksum_calculation=when_supported&response_checksum_validation=when_supported",
	} {
		if err := load(url); err != nil {
			t.Errorf("%q: %v", url, err)
		}
	}
	for url, want := range map[string]string{
		"%":                                     "cannot be parsed",
		"bucket":                                "not a supported store",
		"http://bucket":                         "not a supported store",
		"mem://":                                "not a supported store",
		"s3:bucket":                             "cannot be parsed",
		"s3://":                                 "name of a bucket",
		"s3://bucket/folder":                    "?prefix=folder/",
		"s3://hunter2:hunter2@bucket":           "credentials come from the environment",
		"s3://hunter2@bucket":                   "credentials come from the environment",
		"s3://bucket#hunter2":                   "credentials come from the environment",
		"s3://bucket?secret_access_key=hunter2": "credentials come from the environment",
		"s3://bucket?AWSAccessKeyId=hunter2":    "credentials come from the environment",
		"azblob://c?sig=hunter2":                "credentials come from the environment",
		"azblob://container":                    "use a bucket of a store that speaks S3, or a folder",
		"gs://bucket":                           "s3://bucket?endpoint=https://storage.googleapis.com, with an HMAC key",
		"s3://bucket?regoin=eu-central-1":       `has the parameter "regoin", which is not known; known are endpoint, `,
		"azblob://c?sas_token=hunter2":          "credentials come from the environment",
		"s3://bucket?endpoint=https://a:hunter2@s3.example": "has a user or a password; write",
		"s3://bucket?a=%zz":       "parameters that cannot be parsed",
		"file://folder":           "three slashes",
		"file://":                 "three slashes",
		"file:///d?create_dir=no": "three slashes",
	} {
		err := load(url)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "STORAGE_URL ") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v, want %q", url, err, want)
		}
	}
}

func TestStorageInlineBytes_AreAtMost1MiB(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]int64{"0": 0, "64KiB": 64 << 10, "1MiB": 1 << 20} {
		if c, err := (config.Settings{StorageInlineBytes: value}).LoadStorage(); err != nil || c.StorageInlineBytes != want {
			t.Errorf("%s: %d, %v", value, c.StorageInlineBytes, err)
		}
	}
	for _, value := range []string{"", "-1", "2MiB", "much"} {
		if _, err := (config.Settings{StorageInlineBytes: value}).LoadStorage(); err == nil {
			t.Errorf("%q is accepted", value)
		}
	}
}
