//! Cases of our own, a family each: what is said, and that nothing is said of the same thing done right.

use super::*;

fn world(yaml: &str) -> World {
    world_with(yaml, Options::default())
}

fn world_with(yaml: &str, options: Options) -> World {
    let mut world = World::new(options);
    for value in crate::yaml::documents(yaml).unwrap() {
        assert!(world.add(value.clone()), "{value}");
    }
    world
}

/// Code, object and field of what is said, without the ones that every little world has.
fn said(yaml: &str) -> Vec<String> {
    said_in(&world(yaml))
}

fn said_in(world: &World) -> Vec<String> {
    let noise = ["IST0102", "IST0103", "SLV0001"];
    let shown = |m: &Message| format!("{} {} {}", m.code, m.resource, m.path);
    let mut out: Vec<String> =
        analyze(world).iter().filter(|m| !noise.contains(&m.code)).map(shown).collect();
    out.sort();
    out
}

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: shop}
spec: {selector: {app: two}, ports: [{name: http, port: 80}, {name: grpc, port: 90}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-1, namespace: shop, labels: {app: reviews, version: v1}}
spec: {nodeName: edge-a, containers: [{name: istio-proxy, image: proxy}]}
---
apiVersion: v1
kind: Node
metadata: {name: edge-a, labels: {topology.kubernetes.io/zone: north}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: north, labels: {topology.kubernetes.io/zone: north}}]
---
";

fn in_shop(more: &str) -> Vec<String> {
    said(&format!("{SHOP}{more}"))
}

fn route(name: &str, destination: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{hosts: [{name}.example.com], http: [{{route: [{{destination: {destination}}}]}}]}}\n---\n"
    )
}

#[test]
fn codes_and_checks_have_one_entry_each() {
    let codes: std::collections::BTreeSet<&str> = CODES.iter().map(|c| c.code).collect();
    assert_eq!(codes.len(), CODES.len());
    let names: std::collections::BTreeSet<&str> = ANALYZERS.iter().map(|a| a.name).collect();
    assert_eq!(names.len(), ANALYZERS.len());
}

#[test]
fn a_right_world_is_left_alone() {
    assert_eq!(in_shop(&route("a", "{host: reviews, subset: v1}")), [""; 0]);
    assert_eq!(in_shop(&route("a", "{host: reviews.shop.svc.cluster.local, port: {number: 9080}}")), [""; 0]);
}

#[test]
fn destinations_that_are_not_there() {
    let at = "VirtualService shop/a spec.http[0].route[0].destination.host";
    assert_eq!(in_shop(&route("a", "{host: gone}")), [format!("IST0101 {at}")]);
    assert_eq!(in_shop(&route("a", "{host: reviews.other}")), [format!("IST0101 {at}")]);
    assert_eq!(in_shop(&route("a", "{host: reviews, port: {number: 1}}")), [format!("IST0101 {at}")]);
    assert_eq!(in_shop(&route("a", "{host: reviews, subset: v9}")), [format!("IST0101 {at}")]);
    assert_eq!(in_shop(&route("a", "{host: two}")), [format!("IST0112 {at}")]);
}

#[test]
fn service_entries_count_where_they_are_exported() {
    let entry = |export: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: ext, namespace: other}}\n\
             spec: {{hosts: ['*.example.org'], exportTo: [{export}], resolution: NONE, addresses: [10.0.0.1],\n\
             ports: [{{number: 80, name: http, protocol: HTTP}}]}}\n---\n"
        )
    };
    let rule = route("a", "{host: api.example.org}");
    assert_eq!(in_shop(&format!("{}{rule}", entry("'*'"))), [""; 0]);
    assert_eq!(in_shop(&format!("{}{rule}", entry("shop"))), [""; 0]);
    assert_eq!(in_shop(&format!("{}{rule}", entry("'.'"))).len(), 1);
}

#[test]
fn one_host_has_one_rule_in_the_mesh() {
    let rule = |name: &str, export: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{hosts: [reviews], exportTo: [{export}], http: [{{route: [{{destination: {{host: reviews}}}}]}}]}}\n---\n"
        )
    };
    let both = ["IST0109 VirtualService shop/a metadata.name", "IST0109 VirtualService shop/b metadata.name"];
    assert_eq!(in_shop(&(rule("a", "'*'") + &rule("b", "'*'"))), both);
    assert_eq!(in_shop(&(rule("a", "'*'") + &rule("b", "'.'"))), both);
    assert_eq!(in_shop(&(rule("a", "x") + &rule("b", "y"))), [""; 0]);
}

#[test]
fn rules_that_are_never_used() {
    let rule = |http: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a, namespace: shop}}\n\
             spec: {{hosts: [a.example.com], http: {http}}}\n"
        )
    };
    let to = "route: [{destination: {host: reviews}}]";
    let got = in_shop(&rule(&format!("[{{{to}}}, {{name: late, match: [{{uri: {{prefix: /a}}}}], {to}}}]")));
    assert_eq!(got, ["IST0130 VirtualService shop/a spec.http[1]"]);
    let prefix = |p: &str| format!("{{match: [{{uri: {{prefix: {p}}}}}], {to}}}");
    let got = in_shop(&rule(&format!("[{}, {}]", prefix("/a"), prefix("/ab"))));
    assert_eq!(got, ["IST0131 VirtualService shop/a spec.http[1].match[0]"]);
    let same = in_shop(&rule(&format!("[{}, {}]", prefix("/a"), prefix("/a"))));
    assert_eq!(same.len(), 2, "the match is a duplicate and the rule has no other: {same:?}");
    assert_eq!(in_shop(&rule(&format!("[{}, {}]", prefix("/ab"), prefix("/a")))), [""; 0]);
}

const EDGE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: gw-1, namespace: edge, labels: {gw: edge}}
---
apiVersion: v1
kind: Service
metadata: {name: gw, namespace: edge}
spec: {selector: {gw: edge}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
";

fn gateway(name: &str, selector: &str, port: u16, host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: edge}}\n\
         spec: {{selector: {{gw: {selector}}}, servers: [{{port: {{number: {port}, name: p, protocol: HTTP}}, hosts: ['{host}']}}]}}\n---\n"
    )
}

#[test]
fn gateways_select_pods_and_ports_that_are_exposed() {
    assert_eq!(said(&format!("{EDGE}{}", gateway("a", "edge", 8080, "*"))), [""; 0]);
    let port = "IST0162 Gateway edge/a spec.servers[0].port.number";
    assert_eq!(said(&format!("{EDGE}{}", gateway("a", "edge", 80, "*"))), [port], "the pod's port counts");
    assert_eq!(said(&format!("{EDGE}{}", gateway("a", "edge", 9999, "*"))), [port]);
    // A name says nothing of the pod's port; nor does its absence.
    for own in ["", ", targetPort: web", ", targetPort: 0"] {
        let edge = EDGE.replace(", targetPort: 8080", own);
        assert_eq!(said(&format!("{edge}{}", gateway("a", "edge", 80, "*"))), [""; 0], "{own}");
    }
    assert_eq!(
        said(&format!("{EDGE}{}", gateway("a", "none", 80, "*"))),
        ["IST0101 Gateway edge/a spec.selector"]
    );
    let two = gateway("a", "edge", 8080, "x.com") + &gateway("b", "edge", 8080, "x.com");
    let both = ["IST0145 Gateway edge/a spec.servers[0]", "IST0145 Gateway edge/b spec.servers[0]"];
    assert_eq!(said(&format!("{EDGE}{two}")), both);
    let apart = gateway("a", "edge", 8080, "x.com") + &gateway("b", "edge", 8080, "y.com");
    assert_eq!(said(&format!("{EDGE}{apart}")), [""; 0]);
    // A third that asks for the first one's hosts does not involve the second.
    let third = apart + &gateway("c", "edge", 8080, "x.com");
    assert_eq!(said(&format!("{EDGE}{third}")).len(), 2);
}

#[test]
fn rules_at_gateways() {
    let rule = |gateway: &str, host: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r, namespace: shop}}\n\
             spec: {{hosts: [{host}], gateways: [{gateway}], http: [{{route: [{{destination: {{host: reviews}}}}]}}]}}\n---\n"
        )
    };
    let world = |more: &str| said(&format!("{SHOP}{EDGE}{}{more}", gateway("a", "edge", 8080, "*.x.com")));
    assert_eq!(world(&rule("edge/a", "b.x.com")), [""; 0]);
    assert_eq!(world(&rule("edge/a", "b.y.com")), ["IST0132 VirtualService shop/r spec.gateways[0]"]);
    let lost =
        ["IST0101 VirtualService shop/r spec.gateways[0]", "IST0132 VirtualService shop/r spec.gateways[0]"];
    assert_eq!(world(&rule("a", "b.x.com")), lost);
    let internal = "edge/a~istio-autogenerated-k8s-gateway~http";
    let got = world(&rule(internal, "b.x.com"));
    assert!(got.contains(&"IST0165 VirtualService shop/r spec.gateways[0]".to_owned()), "{got:?}");
}

#[test]
fn names_without_a_protocol_and_ports_that_clash() {
    let service = |name: &str, port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{selector: {{app: x}}, ports: [{port}]}}\n---\n"
        )
    };
    let at = "IST0118 Service shop/a spec.ports[0].name";
    assert_eq!(said(&service("a", "{name: web, port: 80}")), [at]);
    for right in [
        "{name: http-web, port: 80}",
        "{name: GRPC-WEB-x, port: 80}",
        "{name: web, appProtocol: http, port: 80}",
        "{name: web, protocol: UDP, port: 80}",
        "{name: web, port: 3306}",
    ] {
        assert_eq!(said(&service("a", right)), [""; 0], "{right}");
    }
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x, namespace: shop}\n\
        spec: {template: {metadata: {labels: {app: x, sidecar.istio.io/inject: 'true'}}}}\n---\n";
    let clash = service("a", "{name: http, port: 80, targetPort: 1}")
        + &service("b", "{name: http, port: 90, targetPort: 1}");
    assert_eq!(said(&format!("{deployment}{clash}")), ["IST0137 Deployment shop/x metadata.name"]);
}

#[test]
fn messages_are_suppressed_by_annotation() {
    let quiet = |codes: &str| {
        format!("{SHOP}{}", route("a", "{host: gone}")).replace(
            "{name: a, namespace: shop}",
            &format!(
                "{{name: a, namespace: shop, annotations: {{galley.istio.io/analyze-suppress: '{codes}'}}}}"
            ),
        )
    };
    assert_eq!(said(&quiet("IST0101")), [""; 0]);
    assert_eq!(said(&quiet("*")), [""; 0]);
    assert_eq!(said(&quiet("IST0102,IST0103")).len(), 1);
}

#[test]
fn schema_errors_and_what_is_not_honoured() {
    let bad = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: {hosts: [x], nonsense: 1}\n";
    let got = analyze(&world(bad));
    assert_eq!((got[0].code, got[0].level, got[0].namespace.as_str()), ("IST0106", Level::Error, "default"));
    assert_eq!(got[0].resource, "VirtualService a", "as written, without a namespace");
    assert!(got.iter().any(|m| m.code == "SLV0002" && m.path == "spec.nonsense"), "{got:?}");
    let filter =
        "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: a}\nspec: {}\n";
    assert!(analyze(&world(filter)).iter().any(|m| m.code == "SLV0003"));
}

#[test]
fn the_assumed_gateway_is_there_for_files_only() {
    let rule = gateway("a", "edge", 80, "*").replace("gw: edge", "istio: ingressgateway");
    assert_eq!(said(&rule), ["IST0101 Gateway edge/a spec.selector"]);
    let options = Options { assume_ingress_gateway: true, ..Options::default() };
    assert_eq!(said_in(&world_with(&rule, options)), [""; 0]);
}

#[test]
fn the_mesh_config_of_the_cluster_is_read() {
    let telemetry = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: t}\nspec: {accessLogging: [{}]}\n---\n";
    assert_eq!(said(telemetry), ["IST0157 Telemetry t spec.accessLogging[0]"]);
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
        data: {mesh: 'defaultProviders: {accessLogging: [envoy]}'}\n";
    assert_eq!(said(&format!("{telemetry}{config}")), [""; 0]);
}

#[test]
fn later_objects_replace_earlier_ones_and_the_clusters_own_are_left_out() {
    let twice = format!("{SHOP}{}{}", route("a", "{host: gone}"), route("a", "{host: reviews}"));
    assert_eq!(said(&twice), [""; 0]);
    let system = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: kube-system}\nspec: {ports: [{name: x, port: 1}]}\n";
    assert_eq!(said(system), [""; 0]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]
    #[test]
    fn no_object_stops_it(seed in proptest::prelude::any::<u64>()) {
        // Objects of every kind with values of the wrong types in the places that are read.
        let odd = [serde_json::json!(null), serde_json::json!(7), serde_json::json!("x"), serde_json::json!([1, "a"]),
            serde_json::json!({"a": [{}]}), serde_json::json!([{"name": [], "match": 1, "hosts": {}}])];
        let pick = |n: u64| odd[((seed >> (n * 3)) % odd.len() as u64) as usize].clone();
        let mut world = World::new(Options { assume_ingress_gateway: true, ..Options::default() });
        for (i, (kind, api)) in [("VirtualService", "networking.istio.io/v1"), ("Gateway", "networking.istio.io/v1"),
            ("Gateway", "gateway.networking.k8s.io/v1"), ("Service", "v1"), ("Pod", "v1"), ("Deployment", "apps/v1"),
            ("ServiceEntry", "networking.istio.io/v1"), ("Sidecar", "networking.istio.io/v1"),
            ("MutatingWebhookConfiguration", "admissionregistration.k8s.io/v1"), ("Secret", "v1")].into_iter().enumerate()
        {
            let i = i as u64;
            world.add(serde_json::json!({"apiVersion": api, "kind": kind, "metadata": {"name": "a", "labels": pick(i)},
                "spec": {"http": pick(i + 1), "hosts": pick(i + 2), "servers": pick(i + 3), "selector": pick(i + 4),
                         "ports": pick(i + 5), "gateways": pick(i + 1), "containers": pick(i + 2)},
                "webhooks": pick(i), "status": {"conditions": pick(i)}, "data": pick(i)}));
        }
        analyze(&world);
    }
}
