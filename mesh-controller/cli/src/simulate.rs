//! `meshctl simulate`: where a request would go, and why. Objects are compiled as the controller does and asked as the
//! proxy does.

mod answer;
mod gateway;
mod http;
mod l4;
mod policy;
mod why;
mod world;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail};
use mesh_core::{Dice, DiceKind, RequestView};
use serde::Deserialize;
use serde_json::Value;

use crate::{Outcome, args, input, output};

pub use answer::{Answer, Target};
pub use world::{World, WorldOptions};

/// What is simulated.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Request {
    /// `http`, `grpc`, `tcp` or `tls`; `http` when empty.
    pub protocol: String,
    /// Authority as sent; the SNI for TLS.
    pub host: String,
    /// Name of the handshake, for requests under TLS that a gateway ends; the host when empty.
    pub sni: String,
    /// Port that is called; 80 when absent.
    pub port: Option<u16>,
    /// Address that is called.
    pub address: Option<std::net::IpAddr>,
    /// `http` when empty.
    pub scheme: String,
    /// `GET` when empty.
    pub method: String,
    /// Path and query; `/` when empty.
    pub path: String,
    /// A value, or a list of values, for each name.
    pub headers: BTreeMap<String, Value>,
    /// Who calls.
    pub source: Source,
    /// `mesh`, or `namespace/name` of a gateway.
    pub gateway: String,
    /// Fixes what is left to chance, each in [0,1).
    pub dice: BTreeMap<String, f64>,
}

/// Who calls.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Source {
    /// Namespace; `default` when empty.
    pub namespace: String,
    /// Labels of the workload.
    pub labels: BTreeMap<String, String>,
    /// Service account.
    pub service_account: String,
    /// Node.
    pub node: String,
    /// Address of the workload.
    pub address: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    Many(Vec<Request>),
    One(Box<Request>),
}

pub(crate) fn run(args: &args::Simulate) -> Result<Outcome> {
    if args.request == Path::new("-") && args.files.files.contains(&args.request) {
        bail!("objects and request cannot both come from standard input");
    }
    let objects = input::objects(&args.files.files)?;
    let text = input::text(&args.request)?;
    // The two shapes are told apart first, so that a mistake inside is named and not "fits no variant".
    let value: Value =
        serde_json::from_str(&text).with_context(|| format!("read {}", args.request.display()))?;
    let requests = if value.is_array() {
        serde_json::from_value(value).map(OneOrMany::Many)
    } else {
        serde_json::from_value(value).map(|r| OneOrMany::One(Box::new(r)))
    };
    let requests = requests.with_context(|| format!("read {}", args.request.display()))?;
    let options = WorldOptions {
        cluster_domain: args.cluster_domain.clone(),
        root_namespace: args.root_namespace.clone(),
        registry_only: args.registry_only,
    };
    let world = World::new(objects.iter().map(|o| &o.value), &options);
    for problem in world.problems() {
        eprintln!("meshctl: {problem}");
    }
    match requests {
        OneOrMany::One(request) => {
            let answer = world.simulate(&request)?;
            output::print(args.output.format, &answer, || answer.table())?;
        }
        OneOrMany::Many(requests) => {
            let answers = requests.iter().map(|r| world.simulate(r)).collect::<Result<Vec<_>>>()?;
            let table = || answers.iter().map(Answer::table).collect::<Vec<_>>().join("\n");
            output::print(args.output.format, &answers, table)?;
        }
    }
    Ok(Outcome::Fine)
}

/// A request as rules see it.
pub(crate) struct View<'a> {
    request: &'a Request,
    /// Path and query after normalisation.
    path: String,
    headers: BTreeMap<String, Vec<String>>,
}

impl<'a> View<'a> {
    pub(crate) fn new(request: &'a Request) -> Self {
        let or = |text: &'a str, default: &'a str| if text.is_empty() { default } else { text };
        let texts = |value: &Value| match value {
            Value::String(text) => vec![text.clone()],
            Value::Array(list) => {
                list.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect()
            }
            other => vec![other.to_string()],
        };
        let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in &request.headers {
            headers.entry(name.to_ascii_lowercase()).or_default().extend(texts(value));
        }
        Self { request, path: mesh_core::path::normalize(or(&request.path, "/")).into_owned(), headers }
    }
}

impl RequestView for View<'_> {
    fn method(&self) -> &str {
        if self.request.method.is_empty() { "GET" } else { &self.request.method }
    }
    fn authority(&self) -> &str {
        &self.request.host
    }
    fn path_and_query(&self) -> &str {
        &self.path
    }
    fn scheme(&self) -> &str {
        if self.request.scheme.is_empty() { "http" } else { &self.request.scheme }
    }
    fn header_values(&self, name: &str, f: &mut dyn FnMut(&str) -> bool) -> bool {
        self.headers.get(name).is_some_and(|values| values.iter().any(|v| f(v)))
    }
}

/// Chance, fixed by the request.
pub(crate) struct FixedDice<'a>(pub(crate) &'a BTreeMap<String, f64>);

impl Dice for FixedDice<'_> {
    fn roll(&mut self, what: DiceKind) -> f64 {
        let name = match what {
            DiceKind::FaultDelay => "fault.delay",
            DiceKind::FaultAbort => "fault.abort",
            DiceKind::Weight => "weight",
            DiceKind::Mirror => "mirror",
            DiceKind::Balance => "balance",
            DiceKind::Backoff => "backoff",
        };
        self.0.get(name).copied().unwrap_or(0.0).clamp(0.0, 1.0 - f64::EPSILON)
    }
}
