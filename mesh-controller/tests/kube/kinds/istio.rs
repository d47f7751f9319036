//! The kinds of Istio.

use super::{CONDITIONS, Effect, Kind, answers, fails, inside, outside};
use crate::mesh::Mesh;

/// What objects refer to, there all the time.
pub(super) const AROUND: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: machines}
spec:
  hosts: [vm.example.com]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 9080}]
  workloadSelector: {labels: {app: vm}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: at-the-gateway}
spec:
  hosts: [istio.example.com]
  gateways: [try]
  http: [{route: [{destination: {host: details}}]}]
"#;

const COMPILED: Option<(&str, &str, &str, &str)> = Some((CONDITIONS, "Reconciled", "True", "proxies get"));

pub(super) fn kinds() -> Vec<Kind> {
    let mut all = traffic();
    all.extend(outside_and_scope());
    all.extend(without_effect());
    all
}

fn traffic() -> Vec<Kind> {
    vec![
        Kind {
            resource: "virtualservices.networking.istio.io",
            good: r"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: try}
spec:
  hosts: [details]
  http:
  - match: [{uri: {regex: '/details/.*'}}]
    fault: {abort: {percentage: {value: 100}, httpStatus: 418}}
    route: [{destination: {host: details}}]
",
            bad: ("/details/.*", "("),
            refusal: &["spec.http[0].match[0].uri", "is not a regular expression"],
            status: COMPILED,
            effect: Effect::Calls(
                |mesh| answers(inside(mesh, "http://details:9080/details/0"), "418"),
                |mesh| answers(inside(mesh, "http://details:9080/details/0"), "200"),
            ),
        },
        Kind {
            resource: "destinationrules.networking.istio.io",
            good: r"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: try}
spec:
  host: reviews
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: end-user}}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
",
            bad: ("{name: v2,", "{name: v1,"),
            refusal: &["spec.subsets[1]"],
            status: COMPILED,
            effect: Effect::Calls(|mesh| versions(mesh, 1), |mesh| versions(mesh, 3)),
        },
        Kind {
            resource: "gateways.networking.istio.io",
            good: r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: try}
spec:
  selector: {istio: edge}
  servers: [{port: {number: 8090, name: http, protocol: HTTP}, hosts: [istio.example.com]}]
",
            bad: ("protocol: HTTP", "protocol: NONSENSE"),
            refusal: &["protocol", "NONSENSE"],
            status: COMPILED,
            effect: Effect::Calls(
                |mesh| answers(outside(mesh, 8090, "istio.example.com"), "200"),
                |mesh| answers(outside(mesh, 8090, "istio.example.com"), "000"),
            ),
        },
        Kind {
            resource: "telemetries.telemetry.istio.io",
            good: r#"
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: try}
spec:
  metrics:
  - overrides:
    - match: {metric: REQUEST_COUNT, mode: CLIENT}
      tagOverrides: {request_protocol: {value: "'probed'"}}
"#,
            bad: ("{value: \"'probed'\"}", "{operation: UPSERT}"),
            refusal: &["tagOverrides", "value"],
            status: Some((CONDITIONS, "Reconciled", "True", "")),
            effect: Effect::Calls(
                |mesh| if counted(mesh) > 0.0 { Ok(()) } else { Err("not counted".to_owned()) },
                |mesh| if counted(mesh) > 0.0 { Err("still counted".to_owned()) } else { Ok(()) },
            ),
        },
    ]
}

fn outside_and_scope() -> Vec<Kind> {
    vec![
        Kind {
            resource: "serviceentries.networking.istio.io",
            good: r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: try}
spec:
  hosts: [books.example.com]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 9080}]
  endpoints: [{address: '{reviews-v1}'}]
",
            bad: ("protocol: HTTP", "protocol: NONSENSE"),
            refusal: &["protocol", "NONSENSE"],
            status: COMPILED,
            effect: Effect::Calls(
                |mesh| answers(inside(mesh, "http://books.example.com/reviews/0"), "200"),
                |mesh| fails(inside(mesh, "http://books.example.com/reviews/0")),
            ),
        },
        Kind {
            resource: "workloadentries.networking.istio.io",
            good: r"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: try}
spec: {address: '{reviews-v1}', labels: {app: vm}}
",
            bad: ("labels:", "ports: {http: 70000}, labels:"),
            refusal: &["spec.ports", "port"],
            status: COMPILED,
            effect: Effect::Calls(
                |mesh| answers(inside(mesh, "http://vm.example.com/reviews/0"), "200"),
                |mesh| fails(inside(mesh, "http://vm.example.com/reviews/0")),
            ),
        },
        Kind {
            resource: "sidecars.networking.istio.io",
            good: r"
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: try}
spec:
  workloadSelector: {labels: {app: client}}
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
  egress: [{hosts: [./details.default.svc.cluster.local]}]
",
            bad: ("./details", "details"),
            refusal: &["spec.egress[0].hosts[0]"],
            status: COMPILED,
            effect: Effect::Calls(
                |mesh| {
                    answers(inside(mesh, "http://details:9080/details/0"), "200")?;
                    fails(inside(mesh, "http://ratings:9080/ratings/0"))
                },
                |mesh| answers(inside(mesh, "http://ratings:9080/ratings/0"), "200"),
            ),
        },
    ]
}

fn without_effect() -> Vec<Kind> {
    let ignored = Some((CONDITIONS, "Honoured", "False", "spec."));
    let no_such_kind = Some((CONDITIONS, "Reconciled", "False", "this mesh has no"));
    let kind = |resource, good, bad, refusal, status| Kind {
        resource,
        good,
        bad,
        refusal,
        status,
        effect: Effect::Warned("has no effect in this mesh"),
    };
    vec![
        kind(
            "workloadgroups.networking.istio.io",
            "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: try}\n\
             spec: {template: {serviceAccount: a}, probe: {periodSeconds: 5, tcpSocket: {port: 80}}}",
            ("port: 80", "port: 70000"),
            &["probe.tcpSocket"],
            ignored,
        ),
        kind(
            "envoyfilters.networking.istio.io",
            "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: try}\n\
             spec: {workloadSelector: {labels: {app: a}}, configPatches: [{applyTo: CLUSTER, match: {context: ANY}, \
             patch: {operation: MERGE, value: {}}}]}",
            ("context: ANY", "context: WAYPOINT"),
            &["spec.configPatches[0].match"],
            no_such_kind,
        ),
        kind(
            "proxyconfigs.networking.istio.io",
            "apiVersion: networking.istio.io/v1beta1\nkind: ProxyConfig\nmetadata: {name: try}\nspec: {concurrency: 2}",
            ("concurrency: 2", "concurrency: -2"),
            &["spec.concurrency"],
            ignored,
        ),
        kind(
            "wasmplugins.extensions.istio.io",
            "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: try}\n\
             spec: {url: 'oci://example.com/a'}",
            ("oci://", "smtp://"),
            &["spec.url"],
            no_such_kind,
        ),
        kind(
            "peerauthentications.security.istio.io",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: try}\n\
             spec: {selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: STRICT}}}",
            ("selector: {matchLabels: {app: a}}, ", ""),
            &["portLevelMtls"],
            ignored,
        ),
        kind(
            "authorizationpolicies.security.istio.io",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: try}\n\
             spec: {rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]}",
            ("10.0.0.0/8", "nonsense"),
            &["ipBlocks", "nonsense"],
            ignored,
        ),
        kind(
            "requestauthentications.security.istio.io",
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: try}\n\
             spec: {jwtRules: [{issuer: me, jwks: '{\"keys\":[]}'}]}",
            ("{\"keys\":[]}", "nonsense"),
            &["jwks"],
            ignored,
        ),
    ]
}

/// How many versions of reviews answer one user, once in thirty calls.
fn versions(mesh: &Mesh, count: usize) -> Result<(), String> {
    let report = mesh.call("reviews", Some("jason"), 30);
    if report.failed == 0 && report.versions.len() == count { Ok(()) } else { Err(format!("{report:?}")) }
}

/// How many of a new call are counted under the label of the rule.
fn counted(mesh: &Mesh) -> f64 {
    let sum = || -> f64 {
        let text = mesh.get("edge-a", "http://127.0.0.1:15020/metrics");
        let ours =
            |l: &&str| l.starts_with("istio_requests_total") && l.contains("request_protocol=\"probed\"");
        text.lines().filter(ours).filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    let before = sum();
    let _answer = inside(mesh, "http://details:9080/details/0");
    sum() - before
}
