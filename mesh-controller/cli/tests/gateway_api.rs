//! Gateway API as requests see it: objects compiled as the controller does, asked as the proxy does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use meshctl::simulate::{Request, World, WorldOptions};
use serde_json::{Value, json};

const SERVICES: &str = r"
{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop},
 spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: cart-v2, namespace: shop},
 spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: other},
 spec: {clusterIP: 10.96.0.3, ports: [{name: http, port: 80}]}}
";

/// A world with one HTTPRoute for the service `cart`.
fn world(rules: &str) -> World {
    let text = format!(
        "{SERVICES}\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, \
         metadata: {{name: cart, namespace: shop}}, \
         spec: {{parentRefs: [{{group: '', kind: Service, name: cart}}], rules: [{rules}]}}}}"
    );
    let documents = istio_compat::yaml::documents(&text).unwrap();
    let world = World::new(&documents, &WorldOptions::default());
    assert!(world.problems().is_empty(), "{:?}", world.problems());
    world
}

fn ask(world: &World, more: Value) -> Value {
    let mut request = json!({ "host": "cart.shop", "source": { "namespace": "web" } });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let request: Request = serde_json::from_value(request).unwrap();
    serde_json::to_value(world.simulate(&request).unwrap()).unwrap()
}

fn destination(answer: &Value) -> String {
    format!("{}:{}", answer["destination"]["host"], answer["destination"]["port"]).replace('"', "")
}

const V1: &str = "cart.shop.svc.cluster.local:80";
const V2: &str = "cart-v2.shop.svc.cluster.local:8080";

#[test]
fn a_prefix_ends_at_a_slash_and_the_most_specific_rule_wins() {
    let world = world(
        "{backendRefs: [{name: cart, port: 80}]},
         {matches: [{path: {type: PathPrefix, value: /v2/}}, {path: {type: Exact, value: /new}},
                    {headers: [{name: canary, value: 'yes'}]}],
          backendRefs: [{name: cart-v2, port: 8080}]}",
    );
    for (path, want) in [("/v2", V2), ("/v2/x?y=/v3", V2), ("/v22", V1), ("/new", V2), ("/new/x", V1)] {
        let answer = ask(&world, json!({ "path": path }));
        assert_eq!(destination(&answer), want, "{path}: {answer}");
    }
    assert_eq!(destination(&ask(&world, json!({ "headers": { "Canary": "yes" } }))), V2);
}

#[test]
fn what_does_not_exist_answers_500_for_its_share() {
    let world =
        world("{backendRefs: [{name: cart, port: 80, weight: 1}, {name: gone, port: 80, weight: 3}]}");
    let of = |weight: f64| ask(&world, json!({ "dice": { "weight": weight } }));
    assert_eq!(destination(&of(0.2)), V1);
    assert_eq!(of(0.3)["status"], 500);
    // Kinds that nobody knows have no name at all.
    let world = self::world("{backendRefs: [{kind: Deployment, group: apps, name: x, port: 80}]}");
    assert_eq!(ask(&world, json!({}))["status"], 500);
    let world = self::world("{backendRefs: [{name: cart, port: 80, weight: 0}]}");
    let answer = ask(&world, json!({}));
    assert_eq!((&answer["outcome"], &answer["status"]), (&"direct_response".into(), &500.into()));
}

#[test]
fn replaced_prefixes_keep_one_slash() {
    for (prefix, new, path, want) in [
        ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz", "/foo", "/xyz"),
        ("/foo", "/xyz", "/foo/", "/xyz/"),
        ("/foo", "", "/foo/bar", "/bar"),
        ("/foo", "", "/foo/", "/"),
        ("/foo", "", "/foo", "/"),
        ("/foo", "/", "/foo", "/"),
        ("/foo", "/", "/foo/bar?q=1", "/bar?q=1"),
        ("/", "/xyz", "/bar", "/xyz/bar"),
    ] {
        let world = world(&format!(
            "{{matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}], \
             filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: '{new}'}}}}}}], \
             backendRefs: [{{name: cart, port: 80}}]}}"
        ));
        let answer = ask(&world, json!({ "path": path }));
        assert_eq!(answer["request"]["path"], want, "{prefix} -> {new}: {path}: {answer}");
    }
}

#[test]
fn filters_do_what_they_say() {
    let world = world(
        "{matches: [{path: {type: Exact, value: /moved}}],
          filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: shop.example.com, statusCode: 302,
                     path: {type: ReplaceFullPath, replaceFullPath: /new}}}]},
         {matches: [{method: POST, queryParams: [{name: a, value: b}]}],
          filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: '1'}], remove: [X-B]}},
                    {type: URLRewrite, urlRewrite: {hostname: inner, path: {type: ReplaceFullPath, replaceFullPath: /all}}},
                    {type: RequestMirror, requestMirror: {backendRef: {name: cart-v2, port: 8080}, percent: 25}}],
          timeouts: {request: 2s, backendRequest: 500ms}, retry: {attempts: 3, codes: [503]},
          backendRefs: [{name: cart, port: 80}]}",
    );
    let moved = ask(&world, json!({ "path": "/moved?x=1" }));
    assert_eq!(moved["redirect"], json!({ "code": 302, "location": "https://shop.example.com/new?x=1" }));
    let post = ask(&world, json!({ "method": "POST", "path": "/any?a=b" }));
    assert_eq!(post["request"]["path"], "/all?a=b");
    assert_eq!(post["request"]["authority"], "inner");
    assert_eq!(post["request"]["headers"]["set"]["x-a"], "1");
    assert_eq!(post["timeout"], "2s");
    assert_eq!(
        (&post["retries"]["attempts"], &post["retries"]["perTryTimeout"]),
        (&3.into(), &"500ms".into())
    );
    assert_eq!(post["mirrors"][0]["percentage"], 25.0);
    assert_eq!(ask(&world, json!({ "method": "GET", "path": "/any?a=b" }))["status"], 404);
}

#[test]
fn a_route_from_elsewhere_is_for_its_own_namespace_only() {
    let text = format!(
        "{SERVICES}\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, \
         metadata: {{name: mine, namespace: web}}, \
         spec: {{parentRefs: [{{group: '', kind: Service, name: cart, namespace: shop}}], \
         rules: [{{backendRefs: [{{name: cart-v2, namespace: shop, port: 8080}}]}}]}}}}"
    );
    let world = World::new(&istio_compat::yaml::documents(&text).unwrap(), &WorldOptions::default());
    assert_eq!(destination(&ask(&world, json!({}))), V2);
    assert_eq!(destination(&ask(&world, json!({ "source": { "namespace": "shop" } }))), V1);
}

#[test]
fn grpc_routes_match_services_and_methods() {
    let text = format!(
        "{SERVICES}\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, \
         metadata: {{name: cart, namespace: shop}}, \
         spec: {{parentRefs: [{{group: '', kind: Service, name: cart, port: 80}}], rules: [\
         {{matches: [{{method: {{service: shop.Cart, method: Add}}}}], backendRefs: [{{name: cart-v2, port: 8080}}]}}, \
         {{matches: [{{method: {{service: shop.Cart}}}}], backendRefs: [{{name: cart, port: 80}}]}}]}}}}"
    );
    let world = World::new(&istio_compat::yaml::documents(&text).unwrap(), &WorldOptions::default());
    let of = |path: &str| ask(&world, json!({ "protocol": "grpc", "method": "POST", "path": path }));
    assert_eq!(destination(&of("/shop.Cart/Add")), V2);
    assert_eq!(destination(&of("/shop.Cart/Remove")), V1);
    assert_eq!(of("/shop.Cartoon/Add")["status"], 404);
}

#[test]
fn requests_from_outside_go_by_listener_host_and_path() {
    let text = format!(
        "{SERVICES}\n---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: front, namespace: shop}}, \
         spec: {{gatewayClassName: istio, listeners: [{{name: web, port: 80, protocol: HTTP, hostname: '*.example.com'}}, \
         {{name: other, port: 80, protocol: HTTP, hostname: other.example.com}}]}}}}\n---\n\
         {{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: a, namespace: shop}}, \
         spec: {{parentRefs: [{{name: front, sectionName: web}}], hostnames: [a.example.com, other.example.com], rules: [{{backendRefs: [{{name: cart, port: 80}}]}}, \
         {{matches: [{{path: {{value: /v2}}}}], backendRefs: [{{name: cart-v2, port: 8080}}]}}]}}}}"
    );
    let world = World::new(&istio_compat::yaml::documents(&text).unwrap(), &WorldOptions::default());
    let of =
        |host: &str, path: &str| ask(&world, json!({ "gateway": "shop/front", "host": host, "path": path }));
    assert_eq!(destination(&of("a.example.com", "/")), V1);
    assert_eq!(destination(&of("a.example.com", "/v2/x")), V2);
    assert_eq!(of("a.example.org", "/")["status"], 404);
    // The other listener is more exact: it keeps the host, and no route is attached to it.
    assert_eq!(of("other.example.com", "/")["status"], 404);
}

const KEYS: &str = "
apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: shop}
stringData:
  tls.crt: |
    -----BEGIN CERTIFICATE-----
    MAMCAQA=
    -----END CERTIFICATE-----
  tls.key: |
    -----BEGIN PRIVATE KEY-----
    MAMCAQA=
    -----END PRIVATE KEY-----
";

/// A route for each listener, to a service of its own.
fn outside(listeners: &[(&str, u16, &str, &str)], routes: &[(&str, &str, &str, &str)]) -> World {
    let listener = |(name, port, protocol, host): &(&str, u16, &str, &str)| {
        let mut one = json!({ "name": name, "port": port, "protocol": protocol });
        if !host.is_empty() {
            one["hostname"] = json!(host);
        }
        match *protocol {
            "HTTP" => {}
            _ => one["tls"] = json!({ "mode": "Terminate", "certificateRefs": [{ "name": "keys" }] }),
        }
        one
    };
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": "front", "namespace": "shop" },
        "spec": { "gatewayClassName": "istio", "listeners": listeners.iter().map(listener).collect::<Vec<_>>() },
    });
    let route = |(kind, section, host, to): &(&str, &str, &str, &str)| {
        let port = if *to == "cart" { 80 } else { 8080 };
        let mut one = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
            "metadata": { "name": format!("of-{section}"), "namespace": "shop" },
            "spec": {
                "parentRefs": [{ "name": "front", "sectionName": section }],
                "rules": [{ "backendRefs": [{ "name": to, "port": port }] }],
            },
        });
        if !host.is_empty() {
            one["spec"]["hostnames"] = json!([host]);
        }
        one
    };
    let mut objects = istio_compat::yaml::documents(&format!("{SERVICES}\n---\n{KEYS}")).unwrap();
    // As API servers do with `stringData`.
    for object in objects.iter_mut().filter(|o| o["kind"] == "Secret") {
        let text: std::collections::BTreeMap<String, String> =
            serde_json::from_value(object["stringData"].take()).unwrap();
        let encoded = text.iter().map(|(k, v)| (k.clone(), json!(base64(v.as_bytes()))));
        object["data"] = Value::Object(encoded.collect());
    }
    objects.push(gateway);
    objects.extend(routes.iter().map(route));
    World::new(&objects, &WorldOptions::default())
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = ALPHABET[(n >> (18 - 6 * i)) as usize & 63] as char;
            out.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    out
}

#[test]
fn a_plaintext_listener_keeps_its_hosts_from_less_exact_ones() {
    let world = outside(
        &[
            ("all", 80, "HTTP", ""),
            ("wild", 80, "HTTP", "*.example.com"),
            ("exact", 80, "HTTP", "a.example.com"),
        ],
        &[("HTTPRoute", "all", "", "cart"), ("HTTPRoute", "wild", "", "cart-v2")],
    );
    let of = |host: &str| ask(&world, json!({ "gateway": "shop/front", "host": host }));
    assert_eq!(destination(&of("example.org")), V1);
    assert_eq!(destination(&of("b.example.com:80")), V2);
    assert_eq!(of("a.example.com")["status"], 404, "no route is attached to the listener that has it");
}

#[test]
fn a_host_of_another_listener_than_the_handshakes_is_misdirected() {
    let world = outside(
        &[
            ("all", 443, "HTTPS", ""),
            ("second", 443, "HTTPS", "second.example.com"),
            ("wild", 443, "HTTPS", "*.wild.example.com"),
        ],
        &[
            ("HTTPRoute", "all", "first.example.com", "cart"),
            ("HTTPRoute", "second", "", "cart-v2"),
            ("HTTPRoute", "wild", "", "cart"),
        ],
    );
    let of = |sni: &str, host: &str| {
        ask(
            &world,
            json!({ "gateway": "shop/front", "port": 443, "scheme": "https", "host": host, "sni": sni }),
        )
    };
    assert_eq!(destination(&of("", "first.example.com")), V1);
    assert_eq!(destination(&of("second.example.com", "second.example.com")), V2);
    assert_eq!(destination(&of("a.wild.example.com", "b.wild.example.com")), V1);
    for (sni, host, status) in [
        ("first.example.com", "second.example.com", 421),
        ("first.example.com", "unknown.example.com", 404),
        ("second.example.com", "first.example.com", 421),
        ("second.example.com", "unknown.example.com", 421),
        ("a.wild.example.com", "second.example.com", 421),
    ] {
        let answer = of(sni, host);
        assert_eq!(answer["status"], status, "{sni} {host}: {answer}");
    }
}

#[test]
fn bytes_under_tls_that_ends_at_the_gateway_go_by_name() {
    let world = outside(
        &[("a", 8443, "TLS", "a.example.com"), ("b", 8443, "TLS", "b.example.com")],
        &[("TLSRoute", "a", "a.example.com", "cart"), ("TLSRoute", "b", "", "cart-v2")],
    );
    let of = |host: &str| {
        ask(&world, json!({ "protocol": "tls", "gateway": "shop/front", "port": 8443, "host": host }))
    };
    assert_eq!(destination(&of("a.example.com")), V1);
    assert_eq!(destination(&of("b.example.com")), V2);
    assert_eq!(of("c.example.com")["outcome"], "blackhole");
}
