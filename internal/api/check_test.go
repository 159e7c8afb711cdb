package api

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"

	"hearth/internal/api/describe"
	"hearth/internal/api/strict"
	"hearth/internal/gen/rest"
	"hearth/spec"
)

func testDocument(t testing.TB) *describe.Document {
	t.Helper()
	d, err := describe.Parse(spec.OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Every operation that is described has a route, and every route a description.
func TestDescriptionAndRoutesAgree(t *testing.T) {
	doc := testDocument(t)
	routed := map[string]bool{}
	mux := chi.NewRouter()
	rest.HandlerFromMux(rest.Unimplemented{}, mux)
	err := chi.Walk(mux, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		routed[method+" "+route] = true
		if doc.Operation(method, route) == nil {
			t.Errorf("%s %s has no description", method, route)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range doc.Operations {
		if !routed[name] {
			t.Errorf("%s has no route", name)
		}
	}
}

// Every described operation answers something of its own: never the router's
// 404 or 405, never a 500.
func TestEveryOperationHasAHandler(t *testing.T) {
	for name, op := range testDocument(t).Operations {
		t.Run(op.ID, func(t *testing.T) {
			f := newFixture(t)
			id := f.create(`{"templateID":"base"}`)
			if op.ID == "resumeSandbox" {
				want(t, f.do("POST", "/sandboxes/"+id+"/pause", ""), 204)
			}
			method, path, _ := strings.Cut(name, " ")
			body := validBody(op)
			if op.ID == "rollbackSandbox" { // wants one of two
				body = `{"step":1}`
			}
			w := f.do(method, fill(path, nil), body)
			if w.Code >= 300 {
				t.Errorf("%s: %d %s", name, w.Code, w.Body)
			}
		})
	}
}

// fill replaces the path's parameters by ones that exist, or by those given.
func fill(path string, values map[string]string) string {
	all := map[string]string{
		"sandboxID": "i00000000000000000001", "templateID": "empty", "alias": "base",
		"snapshotID": "golden:v2",
		"buildID":    "00000000-0000-4000-8000-000000000001",
	}
	maps.Copy(all, values)
	for name, v := range all {
		path = strings.ReplaceAll(path, "{"+name+"}", v)
	}
	if strings.HasSuffix(path, "/diff") {
		path += "?from=base"
	}
	if strings.HasSuffix(path, "/sandboxes/metrics") {
		path += "?sandbox_ids=i00000000000000000001"
	}
	return path
}

// validBody is the least body that the operation takes.
func validBody(op *describe.Operation) string {
	if op.Body == nil {
		return ""
	}
	return object(op.Body.Required, op.Body, "", "")
}

// object writes an object with the least valid value for each of names, and raw
// for the field with the given name.
func object(names []string, s *describe.Schema, field, raw string) string {
	parts := []string{}
	for _, n := range names {
		if n != field {
			parts = append(parts, strconv.Quote(n)+":"+least(s.Properties[n]))
		}
	}
	if field != "" {
		parts = append(parts, strconv.Quote(field)+":"+raw)
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func least(s *describe.Schema) string {
	switch s.Type {
	case "string":
		return `"base"`
	case "integer":
		return "60"
	case "boolean":
		return "true"
	case "array":
		return "[]"
	}
	return object(s.Required, s, "", "")
}

// bad is a value that must be refused, and what the answer has to say.
type bad struct{ raw, says string }

// badValues derives from a schema what it must not let in.
func badValues(s *describe.Schema) []bad {
	var out []bad
	for _, other := range []struct{ raw, noun string }{
		{`"x"`, "string"}, {`7`, "integer"}, {`true`, "boolean"}, {`[1]`, "array"}, {`{"a":1}`, "object"},
	} {
		if other.noun != s.Type {
			out = append(out, bad{other.raw, "must be " + s.Noun()})
		}
	}
	switch s.Type {
	case "string":
		out = append(out, bad{`"a\u0000b"`, "NUL"})
		if s.MaxLength != nil {
			out = append(out, bad{strconv.Quote(strings.Repeat("x", *s.MaxLength+1)), fmt.Sprintf("at most %d characters", *s.MaxLength)})
		}
		if s.MinLength > 0 {
			out = append(out, bad{`""`, "must not be empty"})
		}
	case "integer":
		out = append(out, bad{"1.5", "must be an integer"}, bad{"1e3", "must be an integer"})
		if s.Minimum != nil {
			out = append(out, bad{strconv.FormatInt(*s.Minimum-1, 10), fmt.Sprintf("at least %d", *s.Minimum)}, bad{"-99999999999999999999", "at least"})
		}
		if s.Maximum != nil {
			out = append(out, bad{strconv.FormatInt(*s.Maximum+1, 10), fmt.Sprintf("at most %d", *s.Maximum)}, bad{"99999999999999999999", "at most"})
		}
	case "array":
		for _, b := range badValues(s.Items) {
			out = append(out, bad{"[" + b.raw + "]", b.says})
		}
		if s.MaxItems != nil {
			out = append(out, bad{"[" + strings.TrimSuffix(strings.Repeat(least(s.Items)+",", *s.MaxItems+1), ",") + "]", fmt.Sprintf("at most %d entries", *s.MaxItems)})
		}
	case "object":
		out = append(out, badObjects(s)...)
	}
	return out
}

func badObjects(s *describe.Schema) []bad {
	var out []bad
	if s.Additional != nil && s.Additional.Values != nil {
		for _, b := range badValues(s.Additional.Values) {
			out = append(out, bad{`{"k":` + b.raw + `}`, b.says})
		}
		out = append(out, bad{`{"a":"1","a":"2"}`, "appears twice"}, bad{`{"":"x"}`, "empty key"}, bad{`{"a\u0000":"x"}`, "NUL"})
	}
	if s.Additional != nil && s.KeyMaxLength != nil && s.Additional.Values != nil {
		out = append(out, bad{`{"` + strings.Repeat("k", *s.KeyMaxLength+1) + `":"x"}`, fmt.Sprintf("may have %d", *s.KeyMaxLength)})
	}
	if s.MaxEntries != nil {
		var many []string
		for i := range *s.MaxEntries + 1 {
			many = append(many, fmt.Sprintf(`"k%d":"x"`, i))
		}
		out = append(out, bad{"{" + strings.Join(many, ",") + "}", fmt.Sprintf("at most %d entries", *s.MaxEntries)})
	}
	for name, p := range s.Properties {
		for _, b := range badValues(p) {
			out = append(out, bad{object(s.Required, s, name, b.raw), b.says})
		}
	}
	for _, name := range s.Required {
		rest := slices.DeleteFunc(slices.Clone(s.Required), func(n string) bool { return n == name })
		out = append(out, bad{object(rest, s, "", ""), name + " is required"}, bad{object(rest, s, name, "null"), name + " is required"})
	}
	return out
}

// Whatever the description forbids of a body is a 400 that says which field it
// is and what the limit is, and changes nothing.
func TestBadBodies(t *testing.T) {
	total := 0
	for name, op := range testDocument(t).Operations {
		if op.Body == nil {
			continue
		}
		method, path, _ := strings.Cut(name, " ")
		t.Run(op.ID, func(t *testing.T) {
			f := newFixture(t)
			f.create(`{"templateID":"base"}`)
			cases := badValues(op.Body)
			for field, p := range op.Body.Properties {
				for _, b := range badValues(p) {
					cases = append(cases, bad{object(op.Body.Required, op.Body, field, b.raw), field})
				}
			}
			for _, raw := range []string{"{", "[", `{"a"`, `{"a":}`, `{} {}`, "nul", "{\"a\":\"\xff\"}", strings.Repeat("[", 10_000), `{"x":` + strings.Repeat(`{"x":`, 200) + "1" + strings.Repeat("}", 201)} {
				cases = append(cases, bad{raw, ""})
			}
			if op.Must {
				cases = append(cases, bad{"", "needs a JSON body"}, bad{"null", ""})
			}
			for _, b := range cases {
				w := f.do(method, fill(path, nil), b.raw)
				if w.Code != 400 || !strings.Contains(w.Body.String(), strings.ReplaceAll(b.says, `"`, `\"`)) {
					t.Errorf("%.200s: %d %s; want 400 with %q", b.raw, w.Code, w.Body, b.says)
				}
			}
			if f.control.made != 1 || len(f.control.boxes) != 1 {
				t.Errorf("something changed: %d made, %d there", f.control.made, len(f.control.boxes))
			}
			total += len(cases)
		})
	}
	t.Logf("%d bad bodies", total)
}

// The same for parameters.
func TestBadParameters(t *testing.T) {
	f := newFixture(t)
	f.create(`{"templateID":"base"}`)
	total := 0
	try := func(name, target string, header []string, body string) {
		t.Helper()
		method, path, _ := strings.Cut(target, " ")
		w := f.do(method, path, body, header...)
		if w.Code < 400 || w.Code >= 500 || !strings.Contains(w.Body.String(), `"code":`+strconv.Itoa(w.Code)) {
			t.Errorf("%s %.200s: %d %s", name, target, w.Code, w.Body)
		}
		total++
	}
	for name, op := range testDocument(t).Operations {
		for _, p := range op.Params {
			for _, text := range badTexts(p) {
				switch p.In {
				case "path":
					try(op.ID, fill(strings.ReplaceAll(name, "{"+p.Name+"}", url.PathEscape(text)), nil), nil, validBody(op))
				case "query":
					if !p.Required && p.Schema.Type == "string" && text == "" {
						continue // as good as absent
					}
					target, _, _ := strings.Cut(fill(name, nil), "?")
					try(op.ID, target+"?"+p.Name+"="+url.QueryEscape(text), nil, validBody(op))
				case "header":
					if text != "" {
						try(op.ID, fill(name, nil), []string{p.Name, text}, validBody(op))
					}
				}
			}
			if p.In == "query" {
				target, _, _ := strings.Cut(fill(name, nil), "?")
				try(op.ID, target+"?"+p.Name+"=1&"+p.Name+"=2", nil, validBody(op))
				try(op.ID, target+"?"+p.Name+"=%zz", nil, validBody(op))
			}
		}
	}
	t.Logf("%d bad parameters", total)
}

func badTexts(p *describe.Parameter) []string {
	out := []string{"\x00", "a\x00b", "\xff\xfe", strings.Repeat("x", 70_000)}
	switch {
	case p.In == "path" && p.Name == "sandboxID":
		out = append(out, "..", "../i00000000000000000001", "%2e%2e", "A", "i_", "/", "i0000/../x", "-x", " ")
	case p.In == "path":
		out = append(out, "..", "../base", "%2e%2e", "%62ase", "a b", "a/b/c", "-/", ":")
	case p.Schema.Type == "integer":
		out = append(out, "", "x", "-1", "1.5", "99999999999999999999", "0x10", "1e2", "-")
	case len(p.Schema.Enum) > 0:
		out = append(out, "x", "ASC", "desc,asc")
	case p.Schema.Type == "array" && len(p.Schema.Items.Enum) > 0:
		out = append(out, "", "x", "running,", "running,killed", "running,paused,running")
	case p.Schema.Format == "date-time":
		out = append(out, "yesterday", "2026-13-01T00:00:00Z", "1700000000")
	case p.Name == "metadata":
		out = append(out, "a=%zz", "a=%2500", "a=%25ff%25", "a=1&a=2", "%zz=1", "a=%25ff")
	case p.In == "header":
		out = append(out, "A", "a_b", strings.Repeat("a", 256), "ü")
	}
	if p.Name == "template" || p.Name == "nextToken" || p.Name == "teamID" { // any text without a NUL is a fair question
		out = slices.DeleteFunc(out, func(s string) bool { return s == "a" })
	}
	return out
}

func TestStrictJSON(t *testing.T) {
	f := newFixture(t)
	for _, tt := range []struct{ body, says string }{
		{`{"templateID":"base","timeout":5,"timeout":6}`, "timeout appears twice"},
		{`{"templateID":"base","network":{"allowOut":["1.1.1.1",2]}}`, "network.allowOut[1] must be a string, not a number"},
		{`{"templateID":"base","metadata":{"a b":7}}`, `metadata["a b"] must be a string, not a number`},
		{`{"templateID":"base","envVars":{"A=B":"c"}}`, `envVars["A=B"] has a key that does not match`},
		{`{"templateID":"base","autoResume":{}}`, "autoResume.enabled is required"},
		{`["templateID"]`, "body must be an object, not an array"},
		{`{"templateID":"base"`, "not valid JSON"},
		{`{"templateID":"base"} x`, "goes on"},
	} {
		want(t, f.do("POST", "/v2/sandboxes", tt.body), 400, tt.says)
	}
	// encoding/json takes any spelling of a field; what was not checked must not get through.
	want(t, f.do("POST", "/v2/sandboxes", `{"templateID":"base","TIMEOUT":"x","MetaData":7}`), 201)
	var big strings.Builder
	for i := range 100 {
		fmt.Fprintf(&big, `,"k%d":"%s"`, i, strings.Repeat("v", 1000))
	}
	want(t, f.do("POST", "/v2/sandboxes", `{"templateID":"base","metadata":{"a":"b"`+big.String()+`}}`), 400, "metadata must be at most 65536 bytes in all")
}

func TestBodyLimit(t *testing.T) {
	f := newFixture(t)
	body := `{"templateID":"base","x":"` + strings.Repeat("x", describe.MaxBody) + `"}`
	want(t, f.do("POST", "/v2/sandboxes", body), 400, "The body must be at most 16777216 bytes")
}

// Clients send bodies in chunks, without a length.
func TestChunkedBody(t *testing.T) {
	f := newFixture(t)
	srv := httptest.NewServer(f.handler)
	defer srv.Close()
	req, _ := http.NewRequest("POST", srv.URL+"/v2/sandboxes", struct{ *strings.Reader }{strings.NewReader(`{"templateID":"base"}`)})
	req.ContentLength = -1
	req.Header.Set("X-API-Key", testKey)
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func FuzzRequestBody(f *testing.F) {
	doc := testDocument(f)
	op := doc.Operation("POST", "/v2/sandboxes")
	for _, s := range []string{`{"templateID":"base"}`, `{"templateID":"a","network":{"allowOut":["x"]}}`, `[]`, `{"a":{"b":[{}]}}`, "\xff", `{"timeout":-0}`} {
		f.Add([]byte(s))
	}
	fx := newFixture(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		v, err := strict.Parse(body)
		if err == nil {
			_, err = op.Body.Check("body", v)
		}
		fx.t = t
		w := fx.do("POST", "/v2/sandboxes", string(body))
		if w.Code >= 500 || (err != nil && w.Code < 400) {
			t.Fatalf("%q: %v, %d %s", body, err, w.Code, w.Body)
		}
	})
}
