//go:build tools

// Package conformance pins the official suite of Gateway API; build.sh builds its test program and its backends.
package conformance

import (
	_ "sigs.k8s.io/gateway-api/conformance"
	_ "sigs.k8s.io/gateway-api/conformance/echo-basic"
)
