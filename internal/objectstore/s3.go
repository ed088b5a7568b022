package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"gocloud.dev/blob"
	"gocloud.dev/blob/s3blob"
)

const (
	// partBytes is the length of a part of a large object, and of the largest that is put at once.
	partBytes = 16 << 20

	// maxParts is how many parts S3 allows, with room to spare.
	maxParts = 9000

	// abortTimeout bounds telling S3 that an upload will not be finished. If it is not told, the
	// reconciler or the bucket's own rule clears it away.
	abortTimeout = 10 * time.Second
)

// s3Bucket is a bucket of S3, beside the driver that all buckets have.
type s3Bucket struct {
	*s3.Client
	name string
	sse  types.ServerSideEncryption // "": what the bucket has
	kms  *string

	checksum types.ChecksumAlgorithm // of parts; "": the server knows none
}

// openS3 opens a bucket as the driver does, with settings for servers that are not Amazon's.
func openS3(ctx context.Context, u *url.URL, q url.Values) (*s3Bucket, *blob.Bucket, error) {
	if q.Has("endpoint") && !q.Has("use_path_style") {
		q.Set("use_path_style", "true") // their buckets have no host names
	}
	if q.Has("endpoint") && !q.Has("region") {
		q.Set("region", "us-east-1") // they have but one
	}
	u.RawQuery = q.Encode()
	opened, err := blob.OpenBucket(ctx, u.String())
	if err != nil {
		return nil, nil, err
	}
	var client *s3.Client
	if !opened.As(&client) {
		return nil, nil, errors.New("the driver has no client")
	}
	client = s3.New(client.Options(), func(o *s3.Options) {
		o.DisableLogOutputChecksumValidationSkipped = true // with older servers that would be a line for each read
	})
	b := &s3Bucket{Client: client, name: u.Host, checksum: types.ChecksumAlgorithmCrc32}
	if client.Options().RequestChecksumCalculation == aws.RequestChecksumCalculationWhenRequired {
		b.checksum = ""
	}
	o := &s3blob.Options{RequestChecksumCalculation: client.Options().RequestChecksumCalculation}
	if sse := q.Get("ssetype"); sse != "" {
		b.sse = types.ServerSideEncryption(sse)
		o.EncryptionType = b.sse
	}
	if kms := q.Get("kmskeyid"); kms != "" {
		b.kms = &kms
		o.KMSEncryptionID = kms
	}
	bucket, err := s3blob.OpenBucket(ctx, client, b.name, o)
	return b, bucket, err
}

type readerAtSeeker interface {
	io.ReaderAt
	io.Seeker
}

// put writes an object from where it is read again if it must be. The driver's own way holds the
// first 16 MiB of every object in memory, which many uploads at once cannot afford.
func (b *s3Bucket) put(ctx context.Context, name string, size int64, content readerAtSeeker) error {
	start, err := content.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	body := func(offset, length int64) io.ReadSeeker { return io.NewSectionReader(content, start+offset, length) }
	if size <= partBytes {
		_, err := b.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &b.name, Key: &name, Body: body(0, size), ContentLength: &size,
			ContentType: aws.String(contentType), ContentDisposition: aws.String(contentDisposition), CacheControl: aws.String(cacheControl),
			ServerSideEncryption: b.sse, SSEKMSKeyId: b.kms,
		})
		return err
	}
	upload, err := b.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &b.name, Key: &name,
		ContentType: aws.String(contentType), ContentDisposition: aws.String(contentDisposition), CacheControl: aws.String(cacheControl),
		ServerSideEncryption: b.sse, SSEKMSKeyId: b.kms, ChecksumAlgorithm: b.checksum,
	})
	if err != nil {
		return err
	}
	err = b.putParts(ctx, name, size, upload.UploadId, body)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
		defer cancel()
		_ = b.abort(ctx, name, upload.UploadId)
	}
	return err
}

func (b *s3Bucket) putParts(ctx context.Context, name string, size int64, id *string, body func(offset, length int64) io.ReadSeeker) error {
	length := max(int64(partBytes), size/maxParts+1)
	var parts []types.CompletedPart
	for offset := int64(0); offset < size; offset += length {
		number := aws.Int32(int32(len(parts) + 1))
		part, err := b.UploadPart(ctx, &s3.UploadPartInput{
			Bucket: &b.name, Key: &name, UploadId: id, PartNumber: number,
			Body: body(offset, min(length, size-offset)), ContentLength: aws.Int64(min(length, size-offset)),
			ChecksumAlgorithm: b.checksum,
		})
		if err != nil {
			return fmt.Errorf("part %d: %w", *number, err)
		}
		parts = append(parts, types.CompletedPart{PartNumber: number, ETag: part.ETag, ChecksumCRC32: part.ChecksumCRC32})
	}
	_, err := b.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &b.name, Key: &name, UploadId: id, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	return err
}

func (b *s3Bucket) abort(ctx context.Context, name string, id *string) error {
	_, err := b.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: &name, UploadId: id})
	return err
}

// Unfinished calls do with every upload of a large object that was begun before a time and neither
// finished nor aborted, until it returns an error. Only S3 has them. What do calls abort for is gone.
func (s *Store) Unfinished(ctx context.Context, before time.Time, do func(name string, abort func() error) error) error {
	if s.s3 == nil {
		return nil
	}
	pages := s3.NewListMultipartUploadsPaginator(s.s3.Client, &s3.ListMultipartUploadsInput{Bucket: &s.s3.name, Prefix: &s.prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("objects: list unfinished uploads: %w", err)
		}
		for _, u := range page.Uploads {
			if !aws.ToTime(u.Initiated).Before(before) {
				continue
			}
			if err := do(aws.ToString(u.Key), func() error { return s.s3.abort(ctx, aws.ToString(u.Key), u.UploadId) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// noSuchBucket tells a missing bucket from a missing object.
func noSuchBucket(err error) bool {
	var api smithy.APIError
	return errors.As(err, &api) && api.ErrorCode() == "NoSuchBucket"
}
