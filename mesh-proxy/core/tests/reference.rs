//! The index finds the same route as a walk over all rules in order, written as the rules read.

use mesh_api::{
    Resource,
    model::{self, string_match::Kind},
};
use mesh_core::{Change, Client, RequestView, Tables};
use proptest::prelude::*;

const HOST: &str = "web.default.svc.cluster.local";

#[derive(Debug, Clone)]
struct Request {
    method: String,
    authority: String,
    path: String,
    headers: Vec<(String, String)>,
}

impl RequestView for Request {
    fn method(&self) -> &str {
        &self.method
    }
    fn authority(&self) -> &str {
        &self.authority
    }
    fn path_and_query(&self) -> &str {
        &self.path
    }
    fn scheme(&self) -> &str {
        "http"
    }
    fn header_values(&self, name: &str, f: &mut dyn FnMut(&str) -> bool) -> bool {
        self.headers.iter().filter(|(n, _)| n == name).any(|(_, v)| f(v))
    }
}

// A small alphabet, so that rules and requests meet often.
fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "a", "A", "b", "ab", "aB", "/", "a/", "é"]).prop_map(str::to_owned)
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(word(), 0..4).prop_map(|w| format!("/{}", w.join("/")))
}

fn condition(value: impl Strategy<Value = String>) -> impl Strategy<Value = model::StringMatch> {
    let kind = (value, 0..4u8).prop_map(|(v, kind)| match kind {
        0 => Some(Kind::Exact(v)),
        1 => Some(Kind::Prefix(v)),
        // The only regular expressions whose meaning the reference knows.
        2 => Some(Kind::Regex(format!("{v}.*"))),
        _ => None,
    });
    kind.prop_map(|kind| model::StringMatch { kind })
}

fn named(lower: bool) -> impl Strategy<Value = Vec<model::NamedMatch>> {
    let name = prop::sample::select(if lower { vec!["x", "y"] } else { vec!["x", "Y"] });
    let one =
        (name, condition(word())).prop_map(|(n, m)| model::NamedMatch { name: n.into(), r#match: Some(m) });
    prop::collection::vec(one, 0..2)
}

fn http_match() -> impl Strategy<Value = model::HttpMatch> {
    let method = condition(prop::sample::select(vec!["GET", "G", "POST"]).prop_map(str::to_owned));
    let authority = condition(prop::sample::select(vec!["web", "web:80", "w"]).prop_map(str::to_owned));
    (
        prop::option::of(condition(path())),
        any::<bool>(),
        prop::option::weighted(0.2, method),
        prop::option::weighted(0.2, authority),
        named(true),
        named(true),
        named(false),
        prop::sample::select(vec![0, 0, 80, 81]),
        prop::sample::select(vec!["", "", "default", "prod"]),
    )
        .prop_map(
            |(uri, ignore, method, authority, headers, without_headers, query_params, port, ns)| {
                model::HttpMatch {
                    uri,
                    ignore_uri_case: ignore,
                    method,
                    authority,
                    headers,
                    without_headers,
                    query_params,
                    port,
                    source_namespace: ns.into(),
                    ..Default::default()
                }
            },
        )
}

fn rules() -> impl Strategy<Value = Vec<model::HttpRule>> {
    prop::collection::vec(prop::collection::vec(http_match(), 0..3), 0..12).prop_map(|list| {
        let direct =
            model::http_rule::Action::DirectResponse(model::DirectResponse { status: 200, body: vec![] });
        list.into_iter()
            .zip(0..)
            .map(|(matches, index)| model::HttpRule {
                index,
                matches,
                action: Some(direct.clone()),
                ..Default::default()
            })
            .collect()
    })
}

fn request() -> impl Strategy<Value = Request> {
    let query = prop::sample::select(vec!["", "?", "?x", "?x=a", "?Y=ab&x=b", "?x=a&x=b", "?y=a"]);
    let header = (prop::sample::select(vec!["x", "y", "z"]).prop_map(str::to_owned), word());
    (
        prop::sample::select(vec!["GET", "POST", "get"]),
        prop::sample::select(vec!["web", "web:80", "WEB"]),
        path(),
        query,
        prop::collection::vec(header, 0..3),
    )
        .prop_map(|(method, authority, path, query, headers)| Request {
            method: method.into(),
            authority: authority.into(),
            path: path + query,
            headers,
        })
}

/// What a condition says to a value, as the rules read.
fn says(m: &model::StringMatch, value: &str, ignore_case: bool) -> bool {
    let fold = |s: &str| if ignore_case { s.to_ascii_lowercase() } else { s.to_owned() };
    match &m.kind {
        Some(Kind::Exact(s)) => fold(s) == fold(value),
        Some(Kind::Prefix(s)) => fold(value).starts_with(&fold(s)),
        Some(Kind::PathPrefix(s)) => {
            value.strip_prefix(s.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('/'))
        }
        Some(Kind::Regex(s)) => value.starts_with(s.strip_suffix(".*").unwrap_or(s)),
        Some(Kind::Present(_)) | None => true,
    }
}

fn values<'a>(r: &'a Request, name: &'a str) -> Vec<&'a str> {
    r.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
}

fn fits(m: &model::HttpMatch, r: &Request) -> bool {
    let condition = |n: &model::NamedMatch| n.r#match.clone().unwrap_or_default();
    let (path, query) = r.path.split_once('?').unwrap_or((&r.path, ""));
    let param = |name: &str| {
        query.split('&').filter(|p| !p.is_empty()).find_map(|p| {
            let (n, v) = p.split_once('=').unwrap_or((p, ""));
            (n == name).then(|| v.to_owned())
        })
    };
    let unwanted = |n: &model::NamedMatch| {
        let (m, found) = (condition(n), values(r, &n.name));
        if m.kind.is_none() {
            return !found.is_empty();
        }
        if found.is_empty() { says(&m, "", false) } else { found.iter().any(|v| says(&m, v, false)) }
    };
    m.uri.as_ref().is_none_or(|u| says(u, path, m.ignore_uri_case))
        && m.method.as_ref().is_none_or(|x| says(x, &r.method, false))
        && m.authority.as_ref().is_none_or(|x| says(x, &r.authority, false))
        && m.headers.iter().all(|n| values(r, &n.name).iter().any(|v| says(&condition(n), v, false)))
        && !m.without_headers.iter().any(unwanted)
        && m.query_params.iter().all(|n| param(&n.name).is_some_and(|v| says(&condition(n), &v, false)))
}

fn selected(m: &model::HttpMatch) -> bool {
    (m.port == 0 || m.port == 80) && (m.source_namespace.is_empty() || m.source_namespace == "default")
}

/// `Some(None)`: claimed, but no rule. `None`: not claimed.
fn reference(rules: &[model::HttpRule], r: &Request) -> Option<Option<(u32, Option<usize>)>> {
    if !rules.iter().any(|r| r.matches.is_empty() || r.matches.iter().any(selected)) {
        return None;
    }
    for rule in rules {
        if rule.matches.is_empty() {
            return Some(Some((rule.index, None)));
        }
        if let Some(i) = rule.matches.iter().position(|m| selected(m) && fits(m, r)) {
            return Some(Some((rule.index, Some(i))));
        }
    }
    Some(None)
}

fn tables(rules: &[model::HttpRule]) -> Tables {
    let service = model::Service {
        host: HOST.into(),
        kind: model::service::Kind::ClusterIp as i32,
        ports: vec![model::Port { number: 80, ..Default::default() }],
        virtual_hosts: vec![model::VirtualHost {
            source: "default/vs".into(),
            http: rules.to_vec(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let (tables, applied) = Tables::new().apply(vec![Change::Set(Resource::Service(service))]);
    assert_eq!(applied.rejected, []);
    tables
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_finds_what_a_walk_finds(rules in rules(), requests in prop::collection::vec(request(), 1..20)) {
        let tables = tables(&rules);
        let client = Client::in_namespace("default");
        for r in &requests {
            let d = tables.route_http(&client, 80, None, r, &mut |_| 0.0);
            let found = d.virtual_host.map(|_| d.rule.map(|x| (x.index, d.matched.map(|m| m.0))));
            prop_assert_eq!(found, reference(&rules, r), "{:?}", r);
        }
    }

    #[test]
    fn no_host_and_no_path_breaks_it(authority in ".{0,300}", path in ".{0,100}") {
        let tables = tables(&[]);
        let r = Request { method: "GET".into(), authority, path: path.clone(), headers: vec![] };
        let _ = tables.route_http(&Client::in_namespace("default"), 80, None, &r, &mut |_| 0.0);
        let once = mesh_core::path::normalize(&path).into_owned();
        prop_assert_eq!(mesh_core::path::normalize(&once), once.as_str());
    }
}

/// One change at a time gives the same as all at once.
#[test]
fn the_order_of_changes_does_not_matter() {
    let service = |i: u32| {
        Change::Set(Resource::Service(model::Service {
            host: format!("s{i}.default.svc.cluster.local"),
            kind: model::service::Kind::ClusterIp as i32,
            vips: vec![format!("10.96.0.{i}")],
            ports: vec![model::Port { number: 80, ..Default::default() }],
            ..Default::default()
        }))
    };
    let endpoints = |i: u32| {
        let e = model::Endpoint {
            address: format!("10.1.0.{i}"),
            ports: vec![model::PortMap { service_port: 80, target_port: 80 }],
            ready: true,
            node: "a".into(),
            ..Default::default()
        };
        let host = format!("s{i}.default.svc.cluster.local");
        Change::Set(Resource::Endpoints(model::Endpoints { host, endpoints: vec![e] }))
    };
    let all: Vec<_> = (1..50).flat_map(|i| [service(i), endpoints(i)]).collect();
    let (at_once, _) = Tables::new().apply(all.clone());
    let mut backwards = Tables::new();
    for change in all.into_iter().rev() {
        backwards = backwards.apply(vec![change]).0;
    }
    for i in 1..50 {
        let host = format!("s{i}.default.svc.cluster.local");
        let clusters = |t: &Tables| t.service(&host).unwrap().clusters().cloned().collect::<Vec<_>>();
        assert_eq!(clusters(&at_once), clusters(&backwards));
        let ip = format!("10.1.0.{i}").parse().unwrap();
        assert_eq!(at_once.owner_of(ip), backwards.owner_of(ip));
    }
}
