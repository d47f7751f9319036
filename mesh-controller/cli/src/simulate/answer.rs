//! What is answered. Fields that do not apply are left out.

use std::{collections::BTreeMap, time::Duration};

use mesh_core::{Cluster, Missing, route::WeightedDestination};
use serde::Serialize;
use serde_json::Value;

/// Where a request goes, and why.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// `forward`, `redirect`, `direct_response`, `abort`, `not_found`, `passthrough` or `blackhole`.
    pub outcome: &'static str,
    /// `namespace/name`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_service: Option<String>,
    /// `http[n]`, `tls[n]` or `tcp[n]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Name of the rule, with the match's if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_name: Option<String>,
    /// Position of the match in its rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub match_index: Option<usize>,
    /// The destination that was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Target>,
    /// All destinations of the rule.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<Target>,
    /// Status of an answer that is made here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Body of an answer that is made here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// gRPC status of an abort.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u32>,
    /// Where the client is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<RedirectTo>,
    /// What changes in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestEdit>,
    /// What changes in the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<ResponseEdit>,
    /// Cross-origin rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<CorsAnswer>,
    /// Injected delay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<String>,
    /// Limit for the whole exchange.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// Copies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<MirrorTo>,
    /// Policy towards the destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Value>,
    /// Step by step.
    pub why: Vec<String>,
}

/// A destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Full host name.
    pub host: String,
    /// Subset.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subset: String,
    /// Port.
    pub port: u16,
    /// Share among the destinations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

impl Target {
    pub(super) fn of_cluster(c: &Cluster) -> Self {
        Self {
            host: c.key.host.to_string(),
            subset: c.key.subset.to_string(),
            port: c.key.port,
            weight: None,
        }
    }

    pub(super) fn of_missing(m: &Missing<'_>) -> Self {
        Self { host: m.host.to_owned(), subset: m.subset.to_owned(), port: m.port, weight: None }
    }

    pub(super) fn of_rule(d: &WeightedDestination, port: u16) -> Self {
        Self { host: d.host.to_string(), subset: d.subset.to_string(), port, weight: Some(d.weight) }
    }
}

/// Where the client is sent.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RedirectTo {
    /// Status.
    pub code: u16,
    /// `Location`.
    pub location: String,
}

/// Header changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HeaderEdit {
    /// Overwritten.
    pub set: BTreeMap<String, String>,
    /// Appended.
    pub add: BTreeMap<String, Vec<String>>,
    /// Removed, before anything else.
    pub remove: Vec<String>,
}

/// What changes in the request.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RequestEdit {
    /// Authority that is sent on.
    pub authority: String,
    /// Path and query that are sent on.
    pub path: String,
    /// Headers.
    pub headers: HeaderEdit,
}

/// What changes in the response.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ResponseEdit {
    /// Headers.
    pub headers: HeaderEdit,
}

/// Cross-origin rules.
#[derive(Debug, Clone, Serialize)]
pub struct CorsAnswer {
    /// `preflight`, `actual` or `none`.
    pub outcome: &'static str,
    /// Headers that are set on the response.
    pub headers: BTreeMap<String, String>,
}

/// Retries.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// After the first try.
    pub attempts: u32,
    /// Limit for each try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<String>,
    /// Conditions and status codes.
    pub retry_on: Vec<String>,
    /// First pause.
    pub backoff: String,
}

/// A copy.
#[derive(Debug, Clone, Serialize)]
pub struct MirrorTo {
    /// Where to.
    #[serde(flatten)]
    pub target: Target,
    /// Share of requests in percent.
    pub percentage: f64,
}

pub(super) fn go(duration: Duration) -> String {
    istio_compat::duration::format_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

impl Answer {
    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut out = format!("outcome      {}\n", self.outcome);
        let mut line = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                out.push_str(&format!("{name:<12} {value}\n"));
            }
        };
        line(
            "rule",
            self.virtual_service.as_ref().map(|v| format!("{v} {}", self.route.as_deref().unwrap_or(""))),
        );
        line("destination", self.destination.as_ref().map(|d| format!("{}:{} {}", d.host, d.port, d.subset)));
        line("status", self.status.map(|s| s.to_string()));
        line("location", self.redirect.as_ref().map(|r| format!("{} {}", r.code, r.location)));
        line("path", self.request.as_ref().map(|r| format!("{} (host {})", r.path, r.authority)));
        line("delay", self.delay.clone());
        line("timeout", self.timeout.clone());
        line("retries", self.retries.as_ref().map(|r| format!("{} on {}", r.attempts, r.retry_on.join(","))));
        for step in &self.why {
            line("why", Some(step.clone()));
        }
        out
    }
}
