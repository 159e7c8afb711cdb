package describe

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"hearth/internal/api/strict"
	"hearth/internal/hearth"
)

// Schema is the part of an OpenAPI schema that requests are checked against.
type Schema struct {
	Ref          string             `yaml:"$ref"`
	Type         string             `yaml:"type"`
	Format       string             `yaml:"format"`
	Nullable     bool               `yaml:"nullable"`
	Enum         []string           `yaml:"enum"`
	Minimum      *int64             `yaml:"minimum"`
	Maximum      *int64             `yaml:"maximum"`
	MinLength    int                `yaml:"minLength"`
	MaxLength    *int               `yaml:"maxLength"`
	Pattern      string             `yaml:"pattern"`
	InWords      string             `yaml:"x-pattern-in-words"` // what a text must do, for messages
	Items        *Schema            `yaml:"items"`
	MinItems     int                `yaml:"minItems"`
	MaxItems     *int               `yaml:"maxItems"`
	Required     []string           `yaml:"required"`
	Properties   map[string]*Schema `yaml:"properties"`
	Additional   *Additional        `yaml:"additionalProperties"`
	MaxEntries   *int               `yaml:"maxProperties"`
	KeyMaxLength *int               `yaml:"x-key-max-length"`
	KeyPattern   string             `yaml:"x-key-pattern"`
	MaxBytes     *int               `yaml:"x-max-bytes"`

	pattern, keyPattern *regexp.Regexp
}

// Additional is what a map's values have to be; a nil schema lets everything in.
type Additional struct{ Values *Schema }

// UnmarshalYAML reads "true" or a schema.
func (a *Additional) UnmarshalYAML(unmarshal func(any) error) error {
	var free any
	if err := unmarshal(&free); err != nil || free == true {
		return err
	}
	a.Values = &Schema{}
	return unmarshal(a.Values)
}

// compile replaces references and prepares patterns, in place.
func (s *Schema) compile(all map[string]*Schema) (*Schema, error) {
	if s == nil {
		return nil, nil
	}
	if s.Ref != "" {
		name := strings.TrimPrefix(s.Ref, "#/components/schemas/")
		target, ok := all[name]
		if !ok {
			return nil, fmt.Errorf("no schema %q", s.Ref)
		}
		return target.compile(all)
	}
	var err error
	if s.Items, err = s.Items.compile(all); err != nil {
		return nil, err
	}
	if s.Additional != nil {
		if s.Additional.Values, err = s.Additional.Values.compile(all); err != nil {
			return nil, err
		}
	}
	for name, p := range s.Properties {
		if s.Properties[name], err = p.compile(all); err != nil {
			return nil, err
		}
	}
	if s.pattern, err = regexp.Compile(s.Pattern); err != nil {
		return nil, err
	}
	s.keyPattern, err = regexp.Compile(s.KeyPattern)
	return s, err
}

// Check returns v without what the schema does not name, or an error that says
// which part of v is wrong and what the limit is.
func (s *Schema) Check(path string, v any) (any, error) {
	if v == nil {
		if s.Nullable {
			return nil, nil
		}
		return nil, Wrong(path, "must be %s, not null", s.Noun())
	}
	switch s.Type {
	case "object":
		return s.checkObject(path, v)
	case "array":
		return s.checkArray(path, v)
	case "string":
		return s.checkString(path, v)
	case "integer":
		return s.checkInteger(path, v)
	case "boolean":
		if _, ok := v.(bool); !ok {
			return nil, s.mistyped(path, v)
		}
	}
	return v, nil
}

func (s *Schema) checkObject(path string, v any) (any, error) {
	object, ok := v.(map[string]any)
	if !ok {
		return nil, s.mistyped(path, v)
	}
	if s.Additional != nil {
		return s.checkMap(path, object)
	}
	for _, name := range s.Required {
		if object[name] == nil {
			return nil, Wrong(strict.Join(path, name), "is required")
		}
	}
	known := make(map[string]any, len(object))
	for _, name := range sortedKeys(object) {
		p, ok := s.Properties[name]
		if !ok || object[name] == nil { // null is as good as absent
			continue
		}
		var err error
		if known[name], err = p.Check(strict.Join(path, name), object[name]); err != nil {
			return nil, err
		}
	}
	return known, nil
}

func (s *Schema) checkMap(path string, object map[string]any) (any, error) {
	if s.MaxEntries != nil && len(object) > *s.MaxEntries {
		return nil, Wrong(path, "must have at most %d entries, has %d", *s.MaxEntries, len(object))
	}
	bytes := 0
	for _, key := range sortedKeys(object) {
		at := strict.Join(path, key)
		switch {
		case key == "":
			return nil, Wrong(path, "must not have an empty key")
		case strings.ContainsRune(key, 0):
			return nil, Wrong(at, "has a NUL character in its key")
		case s.KeyMaxLength != nil && len(key) > *s.KeyMaxLength:
			return nil, Wrong(at, "has a key of %d bytes, may have %d", len(key), *s.KeyMaxLength)
		case !s.keyPattern.MatchString(key):
			return nil, Wrong(at, "has a key that does not match %s", s.KeyPattern)
		}
		if s.Additional.Values != nil {
			if _, err := s.Additional.Values.Check(at, object[key]); err != nil {
				return nil, err
			}
		}
		text, _ := object[key].(string)
		bytes += len(key) + len(text)
	}
	if s.MaxBytes != nil && bytes > *s.MaxBytes {
		return nil, Wrong(path, "must be at most %d bytes in all, is %d", *s.MaxBytes, bytes)
	}
	return object, nil
}

func (s *Schema) checkArray(path string, v any) (any, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, s.mistyped(path, v)
	}
	if len(list) < s.MinItems {
		return nil, Wrong(path, "must have at least %d entries, has %d", s.MinItems, len(list))
	}
	if s.MaxItems != nil && len(list) > *s.MaxItems {
		return nil, Wrong(path, "must have at most %d entries, has %d", *s.MaxItems, len(list))
	}
	checked := make([]any, len(list))
	for i, item := range list {
		var err error
		if checked[i], err = s.Items.Check(path+"["+strconv.Itoa(i)+"]", item); err != nil {
			return nil, err
		}
	}
	return checked, nil
}

func (s *Schema) checkString(path string, v any) (any, error) {
	text, ok := v.(string)
	if !ok {
		return nil, s.mistyped(path, v)
	}
	chars := utf8.RuneCountInString(text)
	switch {
	case !utf8.ValidString(text):
		return nil, Wrong(path, "is not valid UTF-8")
	case strings.ContainsRune(text, 0):
		return nil, Wrong(path, "has a NUL character")
	case chars < s.MinLength && s.MinLength == 1:
		return nil, Wrong(path, "must not be empty")
	case chars < s.MinLength:
		return nil, Wrong(path, "must be at least %d characters, is %d", s.MinLength, chars)
	case s.MaxLength != nil && chars > *s.MaxLength:
		return nil, Wrong(path, "must be at most %d characters, is %d", *s.MaxLength, chars)
	case len(s.Enum) > 0 && !slices.Contains(s.Enum, text):
		return nil, Wrong(path, "must be one of %s", strings.Join(s.Enum, ", "))
	case !s.pattern.MatchString(text):
		return nil, Wrong(path, "must %s", cmp.Or(s.InWords, "match "+s.Pattern))
	}
	if s.Format == "date-time" {
		if _, err := time.Parse(time.RFC3339, text); err != nil {
			return nil, Wrong(path, "must be a time like 2026-01-02T15:04:05Z")
		}
	}
	return text, nil
}

func (s *Schema) checkInteger(path string, v any) (any, error) {
	number, ok := v.(json.Number)
	if !ok {
		return nil, s.mistyped(path, v)
	}
	n, err := strconv.ParseInt(number.String(), 10, 64)
	switch {
	case err != nil && strings.Trim(number.String(), "-0123456789") != "":
		return nil, Wrong(path, "must be an integer")
	case s.Minimum != nil && (n < *s.Minimum):
		return nil, Wrong(path, "must be at least %d", *s.Minimum)
	case s.Maximum != nil && (n > *s.Maximum):
		return nil, Wrong(path, "must be at most %d", *s.Maximum)
	case err != nil:
		return nil, Wrong(path, "must be a 64-bit integer")
	}
	return number, nil
}

// Noun names the schema's type for a message.
func (s *Schema) Noun() string {
	switch s.Type {
	case "object", "array", "integer":
		return "an " + s.Type
	}
	return "a " + s.Type
}

func (s *Schema) mistyped(path string, v any) error {
	return Wrong(path, "must be %s, not %s", s.Noun(), nounOf(v))
}

func nounOf(v any) string {
	switch v.(type) {
	case map[string]any:
		return "an object"
	case []any:
		return "an array"
	case string:
		return "a string"
	case json.Number:
		return "a number"
	case bool:
		return "a boolean"
	}
	return "null"
}

// Wrong is an InvalidArgument about one field.
func Wrong(path, format string, args ...any) error {
	return hearth.Errorf(hearth.InvalidArgument, "%s %s", path, fmt.Sprintf(format, args...))
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
