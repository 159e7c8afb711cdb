package api

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

// Bounds of a request body, and of one that is read as it comes.
const (
	maxBody   = 16 << 20
	maxStream = 64 << 30
)

// document is the part of the API's description that requests are checked against.
type document struct {
	operations map[string]*operation // by method, space, path pattern
}

// operation is one method of one path.
type operation struct {
	id     string
	open   bool // asks for no key
	params []*parameter
	body   *schema // nil: the operation reads none
	must   bool    // the body is required
	stream bool    // the body, or the answer, is of any size and no JSON
}

func (op *operation) ceiling() time.Duration {
	if op.stream {
		return streamCeiling
	}
	return ceiling
}

// parameter is one value in the path, the query or the headers.
type parameter struct {
	Ref      string  `yaml:"$ref"`
	Name     string  `yaml:"name"`
	In       string  `yaml:"in"`
	Required bool    `yaml:"required"`
	Schema   *schema `yaml:"schema"`
}

// The YAML of the description, as far as it matters here.
type (
	yamlDocument struct {
		Paths      map[string]yamlPath `yaml:"paths"`
		Components struct {
			Schemas    map[string]*schema    `yaml:"schemas"`
			Parameters map[string]*parameter `yaml:"parameters"`
		} `yaml:"components"`
	}
	yamlPath struct {
		Parameters []*parameter   `yaml:"parameters"`
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
		Parameters  []*parameter `yaml:"parameters"`
		RequestBody *struct {
			Required bool `yaml:"required"`
			Content  map[string]struct {
				Schema *schema `yaml:"schema"`
			} `yaml:"content"`
		} `yaml:"requestBody"`
	}
)

func parseDocument(text string) (*document, error) {
	var raw yamlDocument
	if err := yaml.Unmarshal([]byte(text), &raw); err != nil {
		return nil, err
	}
	doc := &document{operations: map[string]*operation{}}
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
			doc.operations[method+" "+path] = op
		}
	}
	return doc, nil
}

func (d *yamlDocument) operation(o *yamlOperation, shared []*parameter) (*operation, error) {
	op := &operation{id: o.ID, open: o.Security != nil && len(*o.Security) == 0, stream: o.Stream}
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
		op.params = append(op.params, p)
	}
	if o.RequestBody == nil {
		return op, nil
	}
	body, err := o.RequestBody.Content["application/json"].Schema.compile(d.Components.Schemas)
	if err != nil {
		return nil, err
	}
	op.body, op.must = body, o.RequestBody.Required
	return op, nil
}

func (d *document) operation(method, pattern string) *operation {
	return d.operations[method+" "+pattern]
}

// check refuses a request that does not fit the description, and replaces its
// body by what the description names of it.
func (op *operation) check(w http.ResponseWriter, r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return hearth.Wrap(hearth.InvalidArgument, err, "The query string is not valid percent-encoding")
	}
	for _, p := range op.params {
		if err := p.check(r, query); err != nil {
			return err
		}
	}
	if op.stream {
		return bound(w, r)
	}
	if op.body == nil {
		return nil
	}
	return op.checkBody(w, r)
}

// bound lets the handler read the body itself, within the limits of streams.
func bound(w http.ResponseWriter, r *http.Request) error {
	if r.ContentLength > maxStream {
		return hearth.Errorf(hearth.InvalidArgument, "The body must be at most %d bytes", int64(maxStream))
	}
	r.Body = stream.NewReader(w, r.Body, maxStream)
	return nil
}

func (op *operation) checkBody(w http.ResponseWriter, r *http.Request) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var checked []byte
	switch trimmed := bytes.TrimSpace(raw); {
	case len(trimmed) == 0 && op.must:
		return hearth.Errorf(hearth.InvalidArgument, "The request needs a JSON body")
	case len(trimmed) == 0 || !op.must && string(trimmed) == "null":
	default:
		v, err := strict.Parse(raw)
		if err != nil {
			return err
		}
		if v, err = op.body.check("body", v); err != nil {
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
	_ = conn.SetReadDeadline(time.Now().Add(ceiling)) // not every writer has a connection
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_ = conn.SetReadDeadline(time.Time{})
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, hearth.Errorf(hearth.InvalidArgument, "The body must be at most %d bytes", maxBody)
	}
	if err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "The body could not be read")
	}
	return raw, nil
}

// check looks one parameter up and holds it against its schema.
func (p *parameter) check(r *http.Request, query url.Values) error {
	var values []string
	switch p.In {
	case "path":
		v, err := url.PathUnescape(chi.URLParam(r, p.Name))
		if err != nil {
			return wrong(p.Name, "is not valid percent-encoding")
		}
		values = []string{v}
	case "header":
		values = r.Header.Values(p.Name)
	default:
		values = query[p.Name]
	}
	if len(values) > 1 {
		return wrong(p.Name, "may appear only once")
	}
	if len(values) == 0 || values[0] == "" && p.In == "query" && p.Schema.Type == "string" {
		if p.Required {
			return wrong(p.Name, "is required")
		}
		return nil
	}
	_, err := p.Schema.check(p.Name, p.Schema.fromText(values[0]))
	return err
}

// fromText turns a parameter's text into the JSON value that its schema checks.
func (s *schema) fromText(text string) any {
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
