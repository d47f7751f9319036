//! Small meshes for tests.

use std::collections::BTreeMap;

use mesh_api::{
    Resource,
    model::{self, string_match::Kind},
};

use crate::{Change, DiceKind, RequestView, Tables};

pub(crate) fn service(name: &str, namespace: &str, vip: &str, ports: &[u32]) -> model::Service {
    model::Service {
        host: format!("{name}.{namespace}.svc.cluster.local"),
        namespace: namespace.into(),
        name: name.into(),
        kind: model::service::Kind::ClusterIp as i32,
        vips: vec![vip.into()],
        ports: ports
            .iter()
            .map(|n| model::Port {
                number: *n,
                name: format!("p{n}"),
                protocol: model::Protocol::Http as i32,
            })
            .collect(),
        ..Default::default()
    }
}

pub(crate) fn endpoint(address: &str, node: &str, ports: &[(u32, u32)], version: &str) -> model::Endpoint {
    model::Endpoint {
        address: address.into(),
        ports: ports.iter().map(|(s, t)| model::PortMap { service_port: *s, target_port: *t }).collect(),
        node: node.into(),
        workload: Some(model::Workload {
            address: address.into(),
            namespace: "default".into(),
            name: format!("pod-{address}"),
            labels: labels(&[("version", version)]),
            ..Default::default()
        }),
        ready: true,
        ..Default::default()
    }
}

pub(crate) fn endpoints(host: &str, endpoints: Vec<model::Endpoint>) -> Change {
    Change::Set(Resource::Endpoints(model::Endpoints { host: host.into(), endpoints }))
}

pub(crate) fn labels(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub(crate) fn set(s: model::Service) -> Change {
    Change::Set(Resource::Service(s))
}

pub(crate) fn tables(changes: Vec<Change>) -> Tables {
    let (tables, applied) = Tables::new().apply(changes);
    assert_eq!(applied.rejected, [], "fixtures are valid");
    tables
}

pub(crate) fn exact(s: &str) -> model::StringMatch {
    model::StringMatch { kind: Some(Kind::Exact(s.into())) }
}
pub(crate) fn prefix(s: &str) -> model::StringMatch {
    model::StringMatch { kind: Some(Kind::Prefix(s.into())) }
}
pub(crate) fn regex(s: &str) -> model::StringMatch {
    model::StringMatch { kind: Some(Kind::Regex(s.into())) }
}
pub(crate) fn named(name: &str, m: model::StringMatch) -> model::NamedMatch {
    model::NamedMatch { name: name.into(), r#match: Some(m) }
}

pub(crate) fn to(host: &str, subset: &str, weight: u32) -> model::WeightedDestination {
    model::WeightedDestination {
        destination: Some(model::Destination { host: host.into(), subset: subset.into(), port: 0 }),
        weight,
        headers: None,
    }
}

pub(crate) fn rule(matches: Vec<model::HttpMatch>, to: Vec<model::WeightedDestination>) -> model::HttpRule {
    model::HttpRule {
        matches,
        action: Some(model::http_rule::Action::Forward(model::Forward { destinations: to })),
        ..Default::default()
    }
}

pub(crate) fn uri(m: model::StringMatch) -> model::HttpMatch {
    model::HttpMatch { uri: Some(m), ..Default::default() }
}

pub(crate) fn virtual_host(source: &str, http: Vec<model::HttpRule>) -> model::VirtualHost {
    let http = http.into_iter().zip(0..).map(|(r, index)| model::HttpRule { index, ..r }).collect();
    model::VirtualHost { source: source.into(), http, ..Default::default() }
}

pub(crate) fn subsets(source: &str, names: &[&str]) -> model::DestinationPolicy {
    let subset = |n: &&str| model::Subset {
        name: (*n).into(),
        labels: labels(&[("version", n)]),
        ..Default::default()
    };
    model::DestinationPolicy {
        source: source.into(),
        subsets: names.iter().map(subset).collect(),
        ..Default::default()
    }
}

/// A request that is only text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Req {
    pub(crate) method: String,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

pub(crate) fn get(authority: &str, path: &str) -> Req {
    Req { method: "GET".into(), authority: authority.into(), path: path.into(), headers: Vec::new() }
}

impl Req {
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
    pub(crate) fn method(mut self, m: &str) -> Self {
        self.method = m.into();
        self
    }
}

impl RequestView for Req {
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

/// Always the same number.
pub(crate) fn dice(x: f64) -> impl FnMut(DiceKind) -> f64 {
    move |_| x
}
