package ncloudtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
)

// violations compares requests and answers with an OpenAPI document; without
// one it finds nothing.
type violations struct {
	router routers.Router
	mu     sync.Mutex
	found  []string
}

// maxViolations bounds what is remembered.
const maxViolations = 100

// newViolations reads a file; below is where its paths begin at the simulator.
func newViolations(file, below string) (*violations, error) {
	if file == "" {
		return &violations{}, nil
	}
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromFile(file)
	if err != nil {
		return nil, fmt.Errorf("read OpenAPI file: %w", err)
	}
	if err := doc.Validate(context.Background()); err != nil {
		return nil, fmt.Errorf("OpenAPI file %s: %w", file, err)
	}
	// A service's error has no member that the gateway's forbids, so that it is
	// never exactly one of the two: any will do.
	for _, res := range doc.Components.Responses {
		for _, media := range res.Value.Content {
			if schema := media.Schema.Value; len(schema.OneOf) > 0 {
				schema.AnyOf, schema.OneOf = schema.OneOf, nil
			}
		}
	}
	doc.Servers = openapi3.Servers{{URL: below}} // the simulator has another host
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		return nil, fmt.Errorf("OpenAPI file %s: %w", file, err)
	}
	return &violations{router: router}, nil
}

func (v *violations) input(r *http.Request, body []byte) (*openapi3filter.RequestValidationInput, error) {
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(body))
	route, params, err := v.router.FindRoute(r)
	if err != nil {
		return nil, err
	}
	return &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route, Options: &openapi3filter.Options{
		// Presence of the headers; the gateway has checked their values.
		AuthenticationFunc: func(_ context.Context, in *openapi3filter.AuthenticationInput) error {
			if in.RequestValidationInput.Request.Header.Get(in.SecurityScheme.Name) == "" {
				return fmt.Errorf("header %s is missing", in.SecurityScheme.Name)
			}
			return nil
		},
	}}, nil
}

func (v *violations) request(r *http.Request, body []byte) {
	if v.router == nil {
		return
	}
	in, err := v.input(r, body)
	if err == nil {
		err = openapi3filter.ValidateRequest(r.Context(), in)
	}
	v.note("request", r, err)
}

func (v *violations) response(r *http.Request, body []byte, a reply) {
	if v.router == nil {
		return
	}
	in, err := v.input(r, body)
	if err == nil {
		out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: a.status,
			Header: http.Header{"Content-Type": {a.kind}}, Options: &openapi3filter.Options{IncludeResponseStatus: true}}
		out.SetBodyBytes(a.body)
		// The call may be put off beyond its request's context.
		err = openapi3filter.ValidateResponse(context.WithoutCancel(r.Context()), out)
	}
	v.note("answer", r, err)
}

func (v *violations) note(what string, r *http.Request, err error) {
	if err == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.found) < maxViolations {
		v.found = append(v.found, fmt.Sprintf("%s of %s %s: %v", what, r.Method, r.URL.Path, err))
	}
}

func (v *violations) list() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]string{}, slices.Clone(v.found)...)
}

// OpenAPIFile finds the description of Private CA beside the repository, from
// any directory inside it.
func OpenAPIFile() (string, error) { return openAPIFile("private-ca.openapi.yaml") }

// CertificateManagerOpenAPIFile finds that of Certificate Manager likewise.
func CertificateManagerOpenAPIFile() (string, error) {
	return openAPIFile("certificate-manager.openapi.yaml")
}

func openAPIFile(name string) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod in this directory or above it: not inside the repository")
		}
	}
	file := filepath.Join(dir, "..", "shared", "ncloud", name)
	if _, err := os.Stat(file); err != nil {
		return "", fmt.Errorf("the OpenAPI description is expected at ../shared/ncloud/%s, seen from the repository's root: %w", name, err)
	}
	return file, nil
}
