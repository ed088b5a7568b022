package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

const (
	// partBytes is the size of a part of a large object, and of the largest object that is put with one
	// request. S3 wants parts of at least 5 MiB.
	partBytes = 16 << 20

	// onceBytes is that for content that can be read once only, of which a part is in memory.
	onceBytes = 8 << 20

	// maxParts is below the 10,000 parts that S3 allows.
	maxParts = 9000

	// abortTimeout bounds aborting an upload that failed. The reconciler, or the bucket's own
	// lifecycle rule, deletes what it leaves.
	abortTimeout = 10 * time.Second
)

// A browser that is sent to an object downloads it, and keeps no copy.
const (
	contentType        = "application/octet-stream"
	contentDisposition = "attachment"
	cacheControl       = "private, no-store"
)

// s3Bucket is a backend that keeps objects in a bucket.
type s3Bucket struct {
	*s3.Client
	presign *s3.PresignClient
	name    string
	sse     types.ServerSideEncryption // "": what the bucket has
	kms     *string

	checksum types.ChecksumAlgorithm // of parts; "": the store may know none
}

func (b *s3Bucket) write(ctx context.Context, name string, size int64, content io.Reader) error {
	from, err := newSource(content, size)
	if err != nil {
		return err
	}
	length := int64(partBytes)
	if from.random == nil {
		length = onceBytes
	}
	if size > length {
		return b.writeParts(ctx, name, max(length, size/maxParts+1), from)
	}
	body, err := from.piece(0, size)
	if err != nil {
		return err
	}
	_, err = b.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &b.name, Key: &name, Body: body, ContentLength: &size,
		ContentType: aws.String(contentType), ContentDisposition: aws.String(contentDisposition), CacheControl: aws.String(cacheControl),
		ServerSideEncryption: b.sse, SSEKMSKeyId: b.kms,
	})
	return err
}

func (b *s3Bucket) writeParts(ctx context.Context, name string, length int64, from *source) error {
	upload, err := b.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &b.name, Key: &name,
		ContentType: aws.String(contentType), ContentDisposition: aws.String(contentDisposition), CacheControl: aws.String(cacheControl),
		ServerSideEncryption: b.sse, SSEKMSKeyId: b.kms, ChecksumAlgorithm: b.checksum,
	})
	if err != nil {
		return err
	}
	parts, err := b.uploadParts(ctx, name, upload.UploadId, length, from)
	if err == nil {
		_, err = b.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
			Bucket: &b.name, Key: &name, UploadId: upload.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
		})
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
		defer cancel()
		_ = b.abort(ctx, name, upload.UploadId)
	}
	return err
}

func (b *s3Bucket) uploadParts(ctx context.Context, name string, id *string, length int64, from *source) ([]types.CompletedPart, error) {
	var parts []types.CompletedPart
	for offset := int64(0); offset < from.size; offset += length {
		number, length := aws.Int32(int32(len(parts)+1)), min(length, from.size-offset)
		body, err := from.piece(offset, length)
		if err != nil {
			return nil, err
		}
		part, err := b.UploadPart(ctx, &s3.UploadPartInput{
			Bucket: &b.name, Key: &name, UploadId: id, PartNumber: number, Body: body, ContentLength: &length, ChecksumAlgorithm: b.checksum,
		})
		if err != nil {
			return nil, fmt.Errorf("part %d: %w", *number, err)
		}
		parts = append(parts, types.CompletedPart{PartNumber: number, ETag: part.ETag, ChecksumCRC32: part.ChecksumCRC32})
	}
	return parts, nil
}

func (b *s3Bucket) abort(ctx context.Context, name string, id *string) error {
	_, err := b.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: &name, UploadId: id})
	return err
}

func (b *s3Bucket) read(ctx context.Context, name string, offset int64) (io.ReadCloser, int64, error) {
	in := &s3.GetObjectInput{Bucket: &b.name, Key: &name}
	if offset > 0 {
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	}
	out, err := b.GetObject(ctx, in)
	if err != nil {
		return nil, 0, missing(err)
	}
	size, err := wholeSize(out, offset)
	if err != nil {
		return nil, 0, errors.Join(err, out.Body.Close())
	}
	return out.Body, size, nil
}

// wholeSize returns the size of an object of which the bytes from offset on were asked for.
func wholeSize(out *s3.GetObjectOutput, offset int64) (int64, error) {
	if offset == 0 {
		if out.ContentLength == nil {
			return 0, errors.New("the store does not say how long the object is")
		}
		return *out.ContentLength, nil
	}
	// bytes 100-199/200. A store that ignores ranges sends the object from its start.
	rest, first := strings.CutPrefix(aws.ToString(out.ContentRange), fmt.Sprintf("bytes %d-", offset))
	_, total, cut := strings.Cut(rest, "/")
	size, err := strconv.ParseInt(total, 10, 64)
	if !first || !cut || err != nil {
		return 0, fmt.Errorf("the store was asked for the bytes from %d on, and sends the range %q", offset, aws.ToString(out.ContentRange))
	}
	return size, nil
}

func (b *s3Bucket) size(ctx context.Context, name string) (int64, error) {
	out, err := b.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: &name})
	if err != nil {
		return 0, missing(err)
	}
	return aws.ToInt64(out.ContentLength), nil
}

func (b *s3Bucket) remove(ctx context.Context, name string) error {
	_, err := b.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: &name})
	return missing(err) // Amazon says that it has deleted it, Google that it is not there
}

func (b *s3Bucket) signedURL(ctx context.Context, name string, validFor time.Duration) (string, error) {
	signed, err := b.presign.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &name}, s3.WithPresignExpires(validFor))
	if err != nil {
		return "", err
	}
	return signed.URL, nil
}

func (b *s3Bucket) list(ctx context.Context, prefix string, do func(Object) error) error {
	pages := s3.NewListObjectsV2Paginator(b.Client, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("objectstore: list: %w", err)
		}
		for _, o := range page.Contents {
			if err := do(Object{Name: aws.ToString(o.Key), Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *s3Bucket) unfinished(ctx context.Context, prefix string, before time.Time, do func(name string, abort func() error) error) error {
	pages := s3.NewListMultipartUploadsPaginator(b.Client, &s3.ListMultipartUploadsInput{Bucket: &b.name, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("objectstore: list unfinished uploads: %w", err)
		}
		for _, u := range page.Uploads {
			if !aws.ToTime(u.Initiated).Before(before) {
				continue
			}
			if err := do(aws.ToString(u.Key), func() error { return b.abort(ctx, aws.ToString(u.Key), u.UploadId) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// missing makes a missing object an fs.ErrNotExist. A missing bucket is none: it may come back, and its files with it.
func missing(err error) error {
	switch errorCode(err) {
	case "NoSuchKey", "NotFound": // the latter is that of HEAD, whose answer has no body
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}

// errorCode returns S3's own code, "" for an error that is no answer of the store.
func errorCode(err error) string {
	var answer smithy.APIError
	if !errors.As(err, &answer) {
		return ""
	}
	return answer.ErrorCode()
}
