// Package spec carries the hand-written wire contracts that programs need at
// run time. The rest of this directory is input for the code generators.
package spec

import _ "embed"

//go:embed openapi.yaml
var openAPI string

// OpenAPI returns the document of the public REST API, as YAML.
func OpenAPI() string { return openAPI }
