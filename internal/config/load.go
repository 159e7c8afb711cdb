package config

import (
	"errors"
	"io/fs"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"hearth/internal/hearth"
)

const envPrefix = "HEARTH_"

// Load returns Default, overlaid by the file at path (if path is not empty;
// unknown keys are errors), by environ (pairs "K=V"; an unknown HEARTH_ name is
// an error) and by override (which sets flags), and validates the result.
func Load(path string, environ []string, override func(*Config)) (*Config, error) {
	c := Default()
	if path != "" {
		if err := loadFile(&c, path); err != nil {
			return nil, err
		}
	}
	if err := loadEnv(&c, environ); err != nil {
		return nil, err
	}
	if override != nil {
		override(&c)
	}
	return &c, c.Validate()
}

func loadFile(c *Config, path string) error {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return hearth.Errorf(hearth.NotFound, "config file %s does not exist", path)
	}
	if err != nil {
		return hearth.Wrap(hearth.PermissionDenied, err, "config file %s cannot be read", path)
	}
	if err := yaml.UnmarshalWithOptions(raw, c, yaml.Strict()); err != nil {
		return hearth.Errorf(hearth.InvalidArgument, "config file %s: %s", path, yaml.FormatError(err, false, true))
	}
	return nil
}

// YAML renders the configuration as a file that Load accepts.
func (c *Config) YAML() ([]byte, error) { return yaml.Marshal(c) }

func loadEnv(c *Config, environ []string) error {
	fields := map[string]reflect.Value{}
	collect(reflect.ValueOf(c).Elem(), envPrefix, fields)
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(k, envPrefix) || k == ConfigEnv || strings.HasPrefix(k, testPrefix) {
			continue
		}
		f, ok := fields[k]
		if !ok {
			return hearth.Errorf(hearth.InvalidArgument, "environment variable %s is not a setting; `hearth config` lists them", k)
		}
		if err := set(f, v); err != nil {
			return hearth.Errorf(hearth.InvalidArgument, "environment variable %s: %s", k, err)
		}
	}
	return nil
}

// ConfigEnv names the configuration file in the environment.
const ConfigEnv = envPrefix + "CONFIG"

// testPrefix marks variables that steer tests, not the server.
const testPrefix = envPrefix + "TEST_"

// collect maps environment names to the settable fields below v.
func collect(v reflect.Value, prefix string, into map[string]reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Tag.Get("env") == "-" {
			continue
		}
		name := prefix + strings.ToUpper(f.Tag.Get("yaml"))
		if f.Type.Kind() == reflect.Struct {
			collect(v.Field(i), name+"_", into)
			continue
		}
		into[name] = v.Field(i)
	}
}

func set(f reflect.Value, s string) error {
	switch f.Interface().(type) {
	case string:
		f.SetString(s)
	case []string:
		var list []string
		for part := range strings.SplitSeq(s, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list = append(list, part)
			}
		}
		f.Set(reflect.ValueOf(list))
	case bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return errors.New(strconv.Quote(s) + " is neither true nor false")
		}
		f.SetBool(b)
	case int:
		n, err := strconv.Atoi(s)
		if err != nil {
			return errors.New(strconv.Quote(s) + " is not a whole number")
		}
		f.SetInt(int64(n))
	case time.Duration:
		d, err := time.ParseDuration(s)
		if err != nil {
			return errors.New(strconv.Quote(s) + " is not a duration such as 90s or 24h")
		}
		f.SetInt(int64(d))
	default:
		return errors.New("cannot be set from the environment")
	}
	return nil
}
