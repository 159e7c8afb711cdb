// Package strict reads JSON that means the same to every reader.
package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"unicode/utf8"

	"hearth/internal/hearth"
)

// maxDepth bounds the nesting of a request body.
const maxDepth = 32

// Parse reads one JSON value as nil, bool, string, json.Number, []any and
// map[string]any. It is stricter than encoding/json, which would let one reader
// see what another does not: bytes that are not UTF-8, a key that appears twice
// and anything after the value are errors.
func Parse(body []byte) (any, error) {
	if !utf8.Valid(body) {
		return nil, hearth.Errorf(hearth.InvalidArgument, "The body is not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	v, err := parseValue(dec, "body", 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, hearth.Errorf(hearth.InvalidArgument, "The body goes on after its JSON value")
	}
	return v, nil
}

func parseValue(dec *json.Decoder, path string, depth int) (any, error) {
	if depth > maxDepth {
		return nil, hearth.Errorf(hearth.InvalidArgument, "%s is nested deeper than %d levels", path, maxDepth)
	}
	t, err := dec.Token()
	if err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "The body is not valid JSON (at byte %d)", dec.InputOffset())
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return t, nil
	}
	if delim == '{' {
		return parseObject(dec, path, depth)
	}
	list := []any{}
	for dec.More() {
		v, err := parseValue(dec, path, depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, parseEnd(dec)
}

func parseObject(dec *json.Decoder, path string, depth int) (any, error) {
	object := map[string]any{}
	for dec.More() {
		t, err := dec.Token()
		key, ok := t.(string)
		if err != nil || !ok {
			return nil, hearth.Wrap(hearth.InvalidArgument, err, "The body is not valid JSON (at byte %d)", dec.InputOffset())
		}
		at := Join(path, key)
		if _, twice := object[key]; twice {
			return nil, hearth.Errorf(hearth.InvalidArgument, "%s appears twice", at)
		}
		if object[key], err = parseValue(dec, at, depth+1); err != nil {
			return nil, err
		}
	}
	return object, parseEnd(dec)
}

// parseEnd takes the bracket that ends a list or an object.
func parseEnd(dec *json.Decoder) error {
	if _, err := dec.Token(); err != nil {
		return hearth.Wrap(hearth.InvalidArgument, err, "The body is not valid JSON (at byte %d)", dec.InputOffset())
	}
	return nil
}

// Join extends the path of a field, quoting and shortening odd keys.
func Join(path, key string) string {
	plain := len(key) > 0 && len(key) <= 64
	for _, r := range key {
		plain = plain && (r == '_' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}
	switch {
	case !plain && len(key) > 64:
		return path + "[" + strconv.Quote(key[:64]) + "...]"
	case !plain:
		return path + "[" + strconv.Quote(key) + "]"
	case path == "body":
		return key
	}
	return path + "." + key
}
