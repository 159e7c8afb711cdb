// Package describe holds requests against the API's description, spec/openapi.yaml:
// what the description does not name is left out, what it does not allow refused
// with the field and the limit.
package describe

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/goccy/go-yaml"

	"hearth/internal/api/stream"
	"hearth/internal/api/strict"
	"hearth/internal/hearth"
)

// Bounds of a request body, and of one that is read as it comes, in bytes.
const (
	MaxBody   = 16 << 20
	MaxStream = 64 << 30
)

// What bounds every request, body included; streams are bounded part by part, too.
const (
	Ceiling       = 70 * time.Second
	StreamCeiling = time.Hour
)

// Document is the part of the API's description that requests are checked against.
type Document struct {
	Operations map[string]*Operation // by method, space, path pattern
}

// Operation is one method of one path.
type Operation struct {
	ID     string
	Open   bool // asks for no key
	Params []*Parameter
	Body   *Schema // nil: the operation reads none
	Must   bool    // the body is required
	Stream bool    // the body, or the answer, is of any size and no JSON
}

// Ceiling is how long one call of the operation may take.
func (op *Operation) Ceiling() time.Duration {
	if op.Stream {
		return StreamCeiling
	}
	return Ceiling
}

// Parameter is one value in the path, the query or the headers.
type Parameter struct {
	Ref      string  `yaml:"$ref"`
	Name     string  `yaml:"name"`
	In       string  `yaml:"in"`
	Required bool    `yaml:"required"`
	Schema   *Schema `yaml:"schema"`
}

// The YAML of the description, as far as it matters here.
type (
	yamlDocument struct {
		Paths      map[string]yamlPath `yaml:"paths"`
		Components struct {
			Schemas    map[string]*Schema    `yaml:"schemas"`
			Parameters map[string]*Parameter `yaml:"parameters"`
		} `yaml:"components"`
	}
	yamlPath struct {
		Parameters []*Parameter   `yaml:"parameters"`
		Get        *yamlOperation `yaml:"get"`
		Post       *yamlOperation `yaml:"post"`
		Put        *yamlOperation `yaml:"put"`
		Patch      *yamlOperation `yaml:"patch"`
		Delete     *yamlOperation `yaml:"delete"`
	}
	yamlOperation struct {
		ID          string       `yaml:"operationId"`
		Stream      bool         `yaml:"x-stream"`
		Security    *[]any       `yaml:"security"`
		Parameters  []*Parameter `yaml:"parameters"`
		RequestBody *struct {
			Required bool `yaml:"required"`
			Content  map[string]struct {
				Schema *Schema `yaml:"schema"`
			} `yaml:"content"`
		} `yaml:"requestBody"`
	}
)

// Parse reads a description.
func Parse(text string) (*Document, error) {
	var raw yamlDocument
	if err := yaml.Unmarshal([]byte(text), &raw); err != nil {
		return nil, err
	}
	doc := &Document{Operations: map[string]*Operation{}}
	for path, p := range raw.Paths {
		for method, o := range map[string]*yamlOperation{
			"GET": p.Get, "POST": p.Post, "PUT": p.Put, "PATCH": p.Patch, "DELETE": p.Delete,
		} {
			if o == nil {
				continue
			}
			op, err := raw.operation(o, p.Parameters)
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", method, path, err)
			}
			doc.Operations[method+" "+path] = op
		}
	}
	return doc, nil
}

func (d *yamlDocument) operation(o *yamlOperation, shared []*Parameter) (*Operation, error) {
	op := &Operation{ID: o.ID, Open: o.Security != nil && len(*o.Security) == 0, Stream: o.Stream}
	for _, p := range append(shared[:len(shared):len(shared)], o.Parameters...) {
		if p.Ref != "" {
			target, ok := d.Components.Parameters[strings.TrimPrefix(p.Ref, "#/components/parameters/")]
			if !ok {
				return nil, fmt.Errorf("no parameter %q", p.Ref)
			}
			p = target
		}
		compiled, err := p.Schema.compile(d.Components.Schemas)
		if err != nil {
			return nil, fmt.Errorf("parameter %s: %w", p.Name, err)
		}
		p.Schema = compiled
		op.Params = append(op.Params, p)
	}
	if o.RequestBody == nil {
		return op, nil
	}
	body, err := o.RequestBody.Content["application/json"].Schema.compile(d.Components.Schemas)
	if err != nil {
		return nil, err
	}
	op.Body, op.Must = body, o.RequestBody.Required
	return op, nil
}

// Operation returns the operation of a method and a path pattern, nil if there is none.
func (d *Document) Operation(method, pattern string) *Operation {
	return d.Operations[method+" "+pattern]
}

// Check refuses a request that does not fit the description, and replaces its
// body by what the description names of it.
func (op *Operation) Check(w http.ResponseWriter, r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return hearth.Wrap(hearth.InvalidArgument, err, "The query string is not valid percent-encoding")
	}
	for _, p := range op.Params {
		if err := p.check(r, query); err != nil {
			return err
		}
	}
	if op.Stream {
		return bound(w, r)
	}
	if op.Body == nil {
		return nil
	}
	return op.checkBody(w, r)
}

// bound lets the handler read the body itself, within the limits of streams.
func bound(w http.ResponseWriter, r *http.Request) error {
	if r.ContentLength > MaxStream {
		return hearth.Errorf(hearth.InvalidArgument, "The body must be at most %d bytes", int64(MaxStream))
	}
	r.Body = stream.NewReader(w, r.Body, MaxStream)
	return nil
}

func (op *Operation) checkBody(w http.ResponseWriter, r *http.Request) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var checked []byte
	switch trimmed := bytes.TrimSpace(raw); {
	case len(trimmed) == 0 && op.Must:
		return hearth.Errorf(hearth.InvalidArgument, "The request needs a JSON body")
	case len(trimmed) == 0 || !op.Must && string(trimmed) == "null":
	default:
		v, err := strict.Parse(raw)
		if err != nil {
			return err
		}
		if v, err = op.Body.Check("body", v); err != nil {
			return err
		}
		if checked, err = json.Marshal(v); err != nil {
			return err
		}
	}
	r.Body = io.NopCloser(bytes.NewReader(checked))
	r.ContentLength = int64(len(checked))
	return nil
}

// readBody reads the whole body within the size and time limits.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	conn := http.NewResponseController(w)
	_ = conn.SetReadDeadline(time.Now().Add(Ceiling)) // not every writer has a connection
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	_ = conn.SetReadDeadline(time.Time{})
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, hearth.Errorf(hearth.InvalidArgument, "The body must be at most %d bytes", MaxBody)
	}
	if err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "The body could not be read")
	}
	return raw, nil
}

// check looks one parameter up and holds it against its schema.
func (p *Parameter) check(r *http.Request, query url.Values) error {
	var values []string
	switch p.In {
	case "path":
		v, err := url.PathUnescape(chi.URLParam(r, p.Name))
		if err != nil {
			return Wrong(p.Name, "is not valid percent-encoding")
		}
		values = []string{v}
	case "header":
		values = r.Header.Values(p.Name)
	default:
		values = query[p.Name]
	}
	if len(values) > 1 {
		return Wrong(p.Name, "may appear only once")
	}
	if len(values) == 0 || values[0] == "" && p.In == "query" && p.Schema.Type == "string" {
		if p.Required {
			return Wrong(p.Name, "is required")
		}
		return nil
	}
	_, err := p.Schema.Check(p.Name, p.Schema.fromText(values[0]))
	return err
}

// fromText turns a parameter's text into the JSON value that its schema checks.
func (s *Schema) fromText(text string) any {
	switch s.Type {
	case "integer":
		if _, err := json.Number(text).Int64(); err == nil || strings.Trim(text, "-0123456789") == "" {
			return json.Number(text)
		}
	case "array":
		var list []any
		for part := range strings.SplitSeq(text, ",") {
			list = append(list, s.Items.fromText(part))
		}
		return list
	}
	return text
}
