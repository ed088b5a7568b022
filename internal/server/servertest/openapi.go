package servertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/molecule-ai/platform/internal/server"
)

// checkAnswer fails the test if the answer is not one that the OpenAPI file has: another
// status, another or a missing field or header, another type. It also fails if the platform
// was content with parameters that the file forbids.
func checkAnswer(t testing.TB, request *http.Request, answer *http.Response, body []byte) {
	t.Helper()
	contract, err := loadContract()
	if err == nil {
		err = contract.check(request, answer, body)
	}
	if err != nil {
		t.Errorf("%s %s: not an answer of the OpenAPI file: %d %s: %v", request.Method, request.URL, answer.StatusCode,
			body[:min(len(body), 1000)], err)
	}
}

// The answers that belong to no operation; the file has them under components.
const (
	noSuchPath       = "NoSuchPath"
	methodNotAllowed = "MethodNotAllowed"
	originNotAllowed = "OriginNotAllowed"
	ambiguous        = "Ambiguous"
	encodedBody      = "EncodedBody"
	preflight        = "Preflight"
)

// everywhere are the headers that any answer may have: HTTP's own, those of CORS, and those that
// every answer has, which the file tells of in its description only.
var everywhere = map[string]bool{
	"Date": true, "Content-Type": true, "Content-Length": true, "Connection": true, "Vary": true,
	"Access-Control-Allow-Origin": true, "Access-Control-Allow-Methods": true, "Access-Control-Allow-Headers": true,
	"Access-Control-Expose-Headers": true, "Access-Control-Max-Age": true, "Access-Control-Allow-Credentials": true,
	"Cache-Control": true, "X-Content-Type-Options": true,
}

// ambiguousCode matches the body of a refusal that any path may give.
var ambiguousCode = regexp.MustCompile(`"code":"(invalid_query|ambiguous_authorization)"`)

type contract struct {
	doc    *openapi3.T
	router routers.Router
}

// loadContract reads the OpenAPI file, and fails if it is not a good one.
var loadContract = sync.OnceValues(func() (*contract, error) {
	doc, err := openapi3.NewLoader().LoadFromData(server.OpenAPI)
	if err != nil {
		return nil, fmt.Errorf("load openapi.yaml: %w", err)
	}
	if err := doc.Validate(context.Background()); err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	openapi3filter.RegisterBodyDecoder("text/event-stream", openapi3filter.PlainBodyDecoder)
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	return &contract{doc, router}, nil
})

func (c *contract) check(request *http.Request, answer *http.Response, body []byte) error {
	input, response, err := c.find(request, answer, body)
	if err != nil {
		return err
	}
	if answer.StatusCode < http.StatusMultipleChoices && input.Route != nil {
		if err := openapi3filter.ValidateRequest(request.Context(), input); err != nil {
			return fmt.Errorf("the file forbids this request: %w", err)
		}
	}
	for name := range answer.Header {
		if !everywhere[name] && !hasHeader(response, name) {
			return fmt.Errorf("header %s is not in the file", name)
		}
	}
	bodiless := request.Method == http.MethodHead || len(response.Content) == 0
	if bodiless && len(body) > 0 {
		return errors.New("a body where the file has none")
	}
	return validate(request, response, answer.Header, body, bodiless)
}

// find returns what the file has for the answer. The input has no route if the answer is
// none of an operation.
func (c *contract) find(request *http.Request, answer *http.Response, body []byte) (*openapi3filter.RequestValidationInput, *openapi3.Response, error) {
	spent := request.Clone(request.Context())
	spent.Body = http.NoBody // it has been read
	input := &openapi3filter.RequestValidationInput{Request: spent, Options: &openapi3filter.Options{
		ExcludeRequestBody: true,
		AuthenticationFunc: openapi3filter.NoopAuthenticationFunc,
	}}
	// Routes are found as gin finds them: in the path as it is decoded.
	decoded := request.Clone(request.Context())
	decoded.URL.RawPath = ""
	route, params, err := c.router.FindRoute(decoded)
	switch foreign := request.Header.Get("Origin") != ""; {
	case foreign && answer.StatusCode == http.StatusForbidden && answer.Header.Get("Access-Control-Allow-Origin") == "":
		return input, c.doc.Components.Responses[originNotAllowed].Value, nil
	case foreign && answer.StatusCode == http.StatusNoContent && request.Method == http.MethodOptions:
		return input, c.doc.Components.Responses[preflight].Value, nil
	case answer.StatusCode == http.StatusUnsupportedMediaType:
		return input, c.doc.Components.Responses[encodedBody].Value, nil
	case answer.StatusCode == http.StatusBadRequest && ambiguousCode.Match(body):
		return input, c.doc.Components.Responses[ambiguous].Value, nil
	case errors.Is(err, routers.ErrPathNotFound):
		return input, c.doc.Components.Responses[noSuchPath].Value, want(answer, http.StatusNotFound)
	case errors.Is(err, routers.ErrMethodNotAllowed):
		return input, c.doc.Components.Responses[methodNotAllowed].Value, want(answer, http.StatusMethodNotAllowed)
	case err != nil:
		return nil, nil, err
	}
	input.Route, input.PathParams = route, params
	responses := route.Operation.Responses
	// A workspace's own answer may have any status, those that the platform gives too.
	if relayed := responses.Default(); relayed != nil && answer.Header.Get("Content-Security-Policy") != "" {
		return input, relayed.Value, nil
	}
	response := responses.Value(strconv.Itoa(answer.StatusCode))
	if response == nil {
		return nil, nil, fmt.Errorf("%s has no status %d", route.Operation.OperationID, answer.StatusCode)
	}
	return input, response.Value, nil
}

func want(answer *http.Response, status int) error {
	if answer.StatusCode != status {
		return fmt.Errorf("no operation of the file, so the answer must be %d", status)
	}
	return nil
}

func hasHeader(response *openapi3.Response, name string) bool {
	for documented := range response.Headers {
		if strings.EqualFold(documented, name) {
			return true
		}
	}
	return false
}

// validate checks header and body. openapi3filter never looks at answers to HEAD, nor at a
// 304; so each is shown to it as the 200 to a GET of an operation that has nothing else.
func validate(request *http.Request, response *openapi3.Response, header http.Header, body []byte, bodiless bool) error {
	get := request.Clone(request.Context())
	get.Method = http.MethodGet
	return openapi3filter.ValidateResponse(request.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: get, Route: &routers.Route{
			Spec:      &openapi3.T{},
			Operation: &openapi3.Operation{Responses: openapi3.NewResponses(openapi3.WithStatus(http.StatusOK, &openapi3.ResponseRef{Value: response}))},
		}},
		Status:  http.StatusOK,
		Header:  header,
		Body:    io.NopCloser(bytes.NewReader(body)),
		Options: &openapi3filter.Options{ExcludeResponseBody: bodiless},
	})
}
