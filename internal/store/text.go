package store

import (
	"reflect"
	"strings"
	"unicode/utf8"

	"hearth/internal/hearth"
)

// CheckText walks v, a row or a part of one, and refuses every string in it
// that a database cannot keep: one with a NUL byte or one that is not UTF-8.
// The error is an InvalidArgument that names the field below what.
func CheckText(what string, v any) error {
	return checkText(what, reflect.ValueOf(v))
}

func checkText(what string, v reflect.Value) error {
	switch v.Kind() {
	case reflect.String:
		return checkString(what, v.String())
	case reflect.Pointer:
		if !v.IsNil() {
			return checkText(what, v.Elem())
		}
	case reflect.Struct:
		t := v.Type()
		for i := range t.NumField() {
			if !t.Field(i).IsExported() {
				continue
			}
			if err := checkText(what+"."+t.Field(i).Name, v.Field(i)); err != nil {
				return err
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			if err := checkText(what, v.Index(i)); err != nil {
				return err
			}
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			if err := checkText(what, it.Key()); err != nil {
				return err
			}
			if err := checkText(what, it.Value()); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkString(what, s string) error {
	if strings.IndexByte(s, 0) >= 0 {
		return hearth.Errorf(hearth.InvalidArgument, "%s holds a NUL byte", what)
	}
	if !utf8.ValidString(s) {
		return hearth.Errorf(hearth.InvalidArgument, "%s is not valid UTF-8", what)
	}
	return nil
}
