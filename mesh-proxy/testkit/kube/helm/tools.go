//go:build tools

// Package helm pins the Helm of the test cluster; ../build.sh builds it. It is a module of its own because its Kubernetes
// libraries are of another version than the cluster.
package helm

import _ "helm.sh/helm/v3/cmd/helm"
