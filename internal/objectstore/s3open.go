package objectstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
)

// openS3 opens a bucket. Parameters, all optional:
//
//	region, profile   as AWS_REGION and AWS_PROFILE
//	endpoint          the URL of a store that is not Amazon's
//	use_path_style    false: the bucket is part of the endpoint's host name. Default: true with an endpoint
//	ssetype, kmskeyid server-side encryption of new objects: AES256, aws:kms or aws:kms:dsse, and the key
//	request_checksum_calculation, response_checksum_validation
//	                  when_supported or when_required. Default: when_required with an endpoint
//
// The defaults with an endpoint are for stores that refuse a checksum in a trailer after the body (Ceph
// before Squid, Storj, Google, older gateways).
func openS3(ctx context.Context, bucket string, q url.Values) (*s3Bucket, error) {
	b := &s3Bucket{name: bucket, sse: types.ServerSideEncryption(q.Get("ssetype"))}
	if kms := q.Get("kmskeyid"); kms != "" {
		b.kms = &kms
	}
	endpoint := q.Get("endpoint")
	pathStyle := endpoint != "" // the buckets of most such stores have no host names
	if value := q.Get("use_path_style"); value != "" {
		var err error
		if pathStyle, err = strconv.ParseBool(value); err != nil {
			return nil, fmt.Errorf("the parameter use_path_style is %q, not true or false", value)
		}
	}
	load, err := loadOptions(q)
	if err != nil {
		return nil, err
	}
	c, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, err
	}
	if c.Region == "" && endpoint != "" {
		c.Region = "us-east-1" // such stores have but one, and most call it so
	}
	if c.Region == "" {
		return nil, errors.New("the region of the bucket is not known; add ?region=... to the URL, or set AWS_REGION")
	}
	b.Client = s3.NewFromConfig(c, func(o *s3.Options) {
		o.UsePathStyle = pathStyle
		if endpoint != "" {
			o.BaseEndpoint = &endpoint
		}
		o.HTTPSignerV4 = signer{o.HTTPSignerV4}
		o.DisableLogOutputChecksumValidationSkipped = true // that would be a line for each read
		if o.RequestChecksumCalculation == aws.RequestChecksumCalculationWhenRequired {
			o.APIOptions = append(o.APIOptions, signPayload)
		} else {
			b.checksum = types.ChecksumAlgorithmCrc32
		}
	})
	b.presign = s3.NewPresignClient(b.Client)
	return b, nil
}

// loadOptions returns the settings that the parameters of a URL override.
func loadOptions(q url.Values) ([]func(*config.LoadOptions) error, error) {
	load := []func(*config.LoadOptions) error{
		// Each request has its attempts, however many others have failed.
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) { o.RateLimiter = ratelimit.None })
		}),
	}
	if q.Get("endpoint") != "" {
		load = append(load, config.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
			config.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired))
	}
	for parameter := range q {
		value := q.Get(parameter)
		switch parameter {
		case "endpoint", "use_path_style", "ssetype", "kmskeyid":
		case "region":
			load = append(load, config.WithRegion(value))
		case "profile":
			load = append(load, config.WithSharedConfigProfile(value))
		case "request_checksum_calculation":
			calculate, known := map[string]aws.RequestChecksumCalculation{
				"when_supported": aws.RequestChecksumCalculationWhenSupported, "when_required": aws.RequestChecksumCalculationWhenRequired,
			}[value]
			if !known {
				return nil, fmt.Errorf("the parameter %s is %q, not when_supported or when_required", parameter, value)
			}
			load = append(load, config.WithRequestChecksumCalculation(calculate))
		case "response_checksum_validation":
			validate, known := map[string]aws.ResponseChecksumValidation{
				"when_supported": aws.ResponseChecksumValidationWhenSupported, "when_required": aws.ResponseChecksumValidationWhenRequired,
			}[value]
			if !known {
				return nil, fmt.Errorf("the parameter %s is %q, not when_supported or when_required", parameter, value)
			}
			load = append(load, config.WithResponseChecksumValidation(validate))
		default:
			return nil, fmt.Errorf("the URL has the parameter %q, which is not known", parameter)
		}
	}
	return load, nil
}

// signer signs requests without the header Accept-Encoding, which Google Cloud Storage and other proxies
// change on the way: every request would be refused with SignatureDoesNotMatch. The header is sent
// nevertheless, since Go would ask for gzip without it.
type signer struct{ s3.HTTPSignerV4 }

func (s signer) SignHTTP(ctx context.Context, credentials aws.Credentials, r *http.Request, payloadHash, service, region string,
	signingTime time.Time, options ...func(*v4.SignerOptions)) error {
	if encoding, set := r.Header["Accept-Encoding"]; set {
		delete(r.Header, "Accept-Encoding")
		defer func() { r.Header["Accept-Encoding"] = encoding }()
	}
	return s.HTTPSignerV4.SignHTTP(ctx, credentials, r, payloadHash, service, region, signingTime, options...)
}

// signPayload has the SHA-256 of a body signed over TLS too, where the SDK relies on the checksum that is not
// sent here. So every store notices a body that was changed on the way.
func signPayload(operation *middleware.Stack) error {
	if operation.ID() != "PutObject" && operation.ID() != "UploadPart" { // a URL to read from is signed without a body
		return nil
	}
	hash := &v4.ComputePayloadSHA256{}
	_, err := operation.Finalize.Swap(hash.ID(), hash)
	return err
}

func (b *s3Bucket) explain(ctx context.Context, err error) string {
	switch code := errorCode(err); code {
	case "":
		return b.explainSilence(ctx, err)
	case "AccessDenied", "AllAccessDisabled", "Forbidden":
		return "the store denies these credentials the access; allow them to write, read, list and delete objects in the bucket " + b.name
	case "InvalidAccessKeyId":
		return "the store does not know the access key; check AWS_ACCESS_KEY_ID"
	case "SignatureDoesNotMatch":
		return "the store does not accept the signature; check AWS_SECRET_ACCESS_KEY, and that no proxy changes headers on the way to the store"
	case "ExpiredToken", "InvalidToken":
		return "the store does not accept the session token of the credentials; renew AWS_SESSION_TOKEN"
	case "RequestTimeTooSkewed":
		return "the clocks of this machine and of the store differ by too much"
	case "NoSuchBucket":
		return fmt.Sprintf("there is no bucket %s; create it, or correct the URL", b.name)
	case "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "MovedPermanently":
		return fmt.Sprintf("the bucket %s is not in the region %s; set the URL's parameter region", b.name, b.Options().Region)
	default:
		return "the store answers a small write and its deletion with the error " + code
	}
}

// explainSilence explains an error that is no answer of the store.
func (b *s3Bucket) explainSilence(ctx context.Context, err error) string {
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) {
		return "the certificate of the store is not trusted; AWS_CA_BUNDLE takes the file of its authority"
	}
	if _, err := b.Options().Credentials.Retrieve(ctx); err != nil {
		return "there are no credentials for the store; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
	}
	return "the store cannot be reached"
}
