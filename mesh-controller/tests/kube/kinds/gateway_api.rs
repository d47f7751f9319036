//! The kinds of Gateway API. Its CRDs hold the rules of the specification, so the API server itself refuses most of what
//! is invalid.

use std::process::Command;

use mesh_testkit::bins;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use super::{CONDITIONS, Effect, Kind, answers, fails, fetch, inside, outside};
use crate::{manifests, mesh::Mesh};

/// What objects refer to, there all the time. The service `edge` stands for the proxy on edge-b.
pub(super) const AROUND: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: other}
---
apiVersion: v1
kind: Service
metadata: {name: edge}
spec:
  selector: {gateway.networking.k8s.io/gateway-name: front}
  ports:
  - {name: p0, port: 8100}
  - {name: p1, port: 8101}
  - {name: p2, port: 8102}
  - {name: p3, port: 8103}
  - {name: p4, port: 8104}
  - {name: p5, port: 8105}
---
apiVersion: v1
kind: Service
metadata: {name: secure}
spec: {selector: {app: ratings}, ports: [{name: http, port: 443, targetPort: 9443}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: istio
  addresses: [{type: Hostname, value: edge}]
  allowedListeners: {namespaces: {from: Same}}
  listeners:
  - {name: web, port: 8100, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
  - {name: tcp, port: 8101, protocol: TCP}
  - {name: tls, port: 8102, protocol: TLS, hostname: echo.test, tls: {mode: Passthrough}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: classy}
spec:
  gatewayClassName: try
  addresses: [{type: Hostname, value: edge}]
  listeners: [{name: web, port: 8103, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: everywhere}
spec:
  parentRefs: [{name: classy}, {name: try}, {name: try, group: gateway.networking.k8s.io, kind: ListenerSet}]
  rules: [{backendRefs: [{name: details, port: 9080}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: across, namespace: other}
spec:
  parentRefs: [{name: edge, namespace: default, sectionName: web}]
  hostnames: [across.example.com]
  rules: [{backendRefs: [{name: details, namespace: default, port: 9080}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: secure}
spec:
  parentRefs: [{name: edge, sectionName: web}]
  hostnames: [secure.example.com]
  rules: [{backendRefs: [{name: secure, port: 443}]}]
"#;

/// A server behind TLS beside the pod `ratings-v1`, and its authority in the ConfigMap `authority`.
pub(super) fn a_server_with_tls(mesh: &mut Mesh) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["echo.test".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let folder = mesh.world.folder("secure").unwrap();
    std::fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
    std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
    let mut command = Command::new(bins::find("echo").unwrap());
    command.args(["serve", "--name", "secure", "--version", "v1", "--tls", "9443"]);
    command.arg("--tls-cert").arg(folder.join("tls.crt")).arg("--tls-key").arg(folder.join("tls.key"));
    let process = mesh.world.pod("ratings-v1").unwrap().spawn("secure", &command).unwrap();
    mesh.keep(process);
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "authority" },
        "data": { "ca.crt": authority } });
    manifests::apply_list(&mesh.cluster, vec![map]);
}

const PARENT: &str = "/status/parents/0/conditions";

pub(super) fn kinds() -> Vec<Kind> {
    let mut all = listeners();
    all.extend(http_routes());
    all.extend(other_routes());
    all.extend(references());
    all
}

fn listeners() -> Vec<Kind> {
    vec![
        Kind {
            resource: "gatewayclasses.gateway.networking.k8s.io",
            good: r"
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: try}
spec: {controllerName: istio.io/gateway-controller}
",
            bad: ("istio.io/gateway-controller", "nonsense"),
            refusal: &["spec.controllerName", "nonsense"],
            status: Some((CONDITIONS, "Accepted", "True", "")),
            effect: Effect::Calls(
                |mesh| answers(outside(mesh, 8103, "a.example.com"), "200"),
                |mesh| answers(outside(mesh, 8103, "a.example.com"), "000"),
            ),
        },
        Kind {
            resource: "gateways.gateway.networking.k8s.io",
            good: r"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: try}
spec:
  gatewayClassName: istio
  addresses: [{type: Hostname, value: edge}]
  listeners: [{name: web, port: 8104, protocol: HTTP}]
",
            bad: ("port: 8104", "port: 81040"),
            refusal: &["spec.listeners[0].port", "65535"],
            status: Some((CONDITIONS, "Programmed", "True", "edge.default.svc")),
            effect: Effect::Calls(
                |mesh| answers(outside(mesh, 8104, "a.example.com"), "200"),
                |mesh| answers(outside(mesh, 8104, "a.example.com"), "000"),
            ),
        },
        Kind {
            resource: "listenersets.gateway.networking.k8s.io",
            good: r"
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: try}
spec:
  parentRef: {name: edge}
  listeners: [{name: more, port: 8105, protocol: HTTP}]
",
            bad: ("protocol: HTTP}", "protocol: HTTP, tls: {mode: Terminate}}"),
            refusal: &["spec.listeners", "tls"],
            status: Some((CONDITIONS, "Accepted", "True", "")),
            effect: Effect::Calls(
                |mesh| answers(outside(mesh, 8105, "a.example.com"), "200"),
                |mesh| answers(outside(mesh, 8105, "a.example.com"), "000"),
            ),
        },
    ]
}

fn http_routes() -> Vec<Kind> {
    vec![
        Kind {
            resource: "httproutes.gateway.networking.k8s.io",
            good: r"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: try}
spec:
  parentRefs: [{group: '', kind: Service, name: details, port: 9080}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /details}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: elsewhere.example.com, statusCode: 301}}]
",
            bad: ("value: /details", "value: details"),
            refusal: &["spec.rules[0].matches[0].path", "must be an absolute path"],
            status: Some((PARENT, "Accepted", "True", "")),
            effect: Effect::Calls(
                |mesh| answers(inside(mesh, "http://details:9080/details/0"), "301"),
                |mesh| answers(inside(mesh, "http://details:9080/details/0"), "200"),
            ),
        },
        Kind {
            resource: "grpcroutes.gateway.networking.k8s.io",
            good: r"
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: try}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews, port: 9080}]
  rules:
  - matches: [{method: {service: selvage.echo.v1.Echo, method: Unary}}]
    backendRefs: [{name: reviews-v2, port: 9080}]
",
            bad: ("method: Unary", "method: 'no method'"),
            refusal: &["spec.rules[0].matches[0].method", "method"],
            status: Some((PARENT, "Accepted", "True", "")),
            effect: Effect::Calls(|mesh| grpc(mesh, 1), |mesh| grpc(mesh, 3)),
        },
    ]
}

fn other_routes() -> Vec<Kind> {
    vec![
        Kind {
            resource: "tcproutes.gateway.networking.k8s.io",
            good: r"
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: try}
spec:
  parentRefs: [{name: edge, sectionName: tcp}]
  rules: [{backendRefs: [{name: details, port: 9080}]}]
",
            bad: ("[{name: details, port: 9080}]", "[]"),
            refusal: &["spec.rules[0].backendRefs"],
            status: Some((PARENT, "Accepted", "True", "")),
            effect: Effect::Calls(
                |mesh| answers(outside(mesh, 8101, "a.example.com"), "200"),
                |mesh| answers(outside(mesh, 8101, "a.example.com"), "000"),
            ),
        },
        Kind {
            resource: "tlsroutes.gateway.networking.k8s.io",
            good: r"
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: try}
spec:
  parentRefs: [{name: edge, sectionName: tls}]
  hostnames: [echo.test]
  rules: [{backendRefs: [{name: secure, port: 443}]}]
",
            bad: ("hostnames: [echo.test]", "hostnames: [192.0.2.1]"),
            refusal: &["spec.hostnames", "IP"],
            status: Some((PARENT, "Accepted", "True", "")),
            effect: Effect::Calls(|mesh| answers(passed(mesh), "200"), |mesh| answers(passed(mesh), "000")),
        },
    ]
}

fn references() -> Vec<Kind> {
    vec![
        Kind {
            resource: "referencegrants.gateway.networking.k8s.io",
            good: r"
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: try}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other}]
  to: [{group: '', kind: Service}]
",
            bad: ("[{group: '', kind: Service}]", "[]"),
            refusal: &["spec.to"],
            status: None,
            effect: Effect::Calls(
                |mesh| answers(outside(mesh, 8100, "across.example.com"), "200"),
                |mesh| answers(outside(mesh, 8100, "across.example.com"), "500"),
            ),
        },
        Kind {
            resource: "backendtlspolicies.gateway.networking.k8s.io",
            good: r"
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: try}
spec:
  targetRefs: [{group: '', kind: Service, name: secure}]
  validation:
    hostname: echo.test
    caCertificateRefs: [{group: '', kind: ConfigMap, name: authority}]
",
            bad: ("    caCertificateRefs: [{group: '', kind: ConfigMap, name: authority}]", ""),
            refusal: &["spec.validation", "must specify either CACertificateRefs"],
            status: Some(("/status/ancestors/0/conditions", "Accepted", "True", "")),
            effect: Effect::Calls(
                |mesh| answers(outside(mesh, 8100, "secure.example.com"), "200"),
                |mesh| fails(outside(mesh, 8100, "secure.example.com")),
            ),
        },
    ]
}

/// How many versions of reviews answer gRPC calls.
fn grpc(mesh: &Mesh, count: usize) -> Result<(), String> {
    let echo = bins::find("echo").unwrap().display().to_string();
    let args = [&echo, "call", "--grpc", "http://reviews:9080", "-n", "30", "-o", "json"];
    let output = mesh.world.pod("client").unwrap().exec(&args).unwrap();
    let report = crate::mesh::Report::parse(&output.stdout).ok_or(output.stderr)?;
    if report.failed == 0 && report.versions.len() == count { Ok(()) } else { Err(format!("{report:?}")) }
}

/// A call by TLS through the listener that passes it on.
fn passed(mesh: &Mesh) -> (String, String) {
    let address = mesh.world.node("edge-b").unwrap().address();
    let resolve = format!("echo.test:8102:{address}");
    fetch(mesh, "cloud", "https://echo.test:8102/", &["--resolve", &resolve])
}
