//! Which fields this mesh honours: one table, from which the findings at parse time and the documentation are made. A
//! test holds the table against the schema, so that no field is without an entry.

mod document;
mod mesh_config;
mod resources;
mod table;

use serde_json::Value;

pub use document::markdown;
pub use mesh_config::MESH_CONFIG;
pub(crate) use mesh_config::unsupported_setting;
pub use table::HEADER_COMMANDS;

/// How far a field is honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// As in Istio.
    Honoured,
    /// With some values only; the note says which.
    Partly,
    /// Accepted without effect.
    Ignored,
    /// Without effect in Istio too; a warning says so.
    Idle,
}

impl Status {
    /// The word in the documentation.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Honoured => "yes",
            Self::Partly => "partly",
            Self::Ignored => "no",
            Self::Idle => "yes",
        }
    }
}

/// One row of the table.
pub struct Field {
    /// Path below `spec`: `[]` stands for any index, `{}` for any key. Covers the fields below it that have no row.
    pub path: &'static str,
    /// How far it is honoured.
    pub status: Status,
    /// What is different, or what happens instead.
    pub note: &'static str,
    /// For [`Status::Partly`]: whether this value is one without effect.
    when: Option<fn(&Value) -> bool>,
}

impl Field {
    /// Whether it is values that decide about the effect.
    pub const fn has_values(&self) -> bool {
        self.when.is_some()
    }
}

/// The row that says how a field is honoured: its own, or the nearest one above it.
pub fn row(kind: &str, path: &str) -> Option<&'static Field> {
    let path = canonical(path);
    let covers = |f: &&Field| {
        path.strip_prefix(f.path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '{']))
    };
    fields(kind).iter().filter(covers).max_by_key(|f| f.path.len())
}

/// The rows of a kind.
pub fn fields(kind: &str) -> &'static [Field] {
    match kind {
        "VirtualService" => table::VIRTUAL_SERVICE,
        "DestinationRule" => table::DESTINATION_RULE,
        "Gateway" => resources::GATEWAY,
        "ServiceEntry" => resources::SERVICE_ENTRY,
        "WorkloadEntry" => resources::WORKLOAD_ENTRY,
        "WorkloadGroup" => resources::WORKLOAD_GROUP,
        "Sidecar" => resources::SIDECAR,
        "Telemetry" => resources::TELEMETRY,
        "PeerAuthentication" => resources::PEER_AUTHENTICATION,
        "RequestAuthentication" => resources::REQUEST_AUTHENTICATION,
        "AuthorizationPolicy" => resources::AUTHORIZATION_POLICY,
        "EnvoyFilter" => resources::ENVOY_FILTER,
        "ProxyConfig" => resources::PROXY_CONFIG,
        "WasmPlugin" => resources::WASM_PLUGIN,
        _ => &[],
    }
}

/// Kinds that have a table, in the order of the documentation.
pub const KINDS: [&str; 14] = [
    "VirtualService",
    "DestinationRule",
    "Gateway",
    "ServiceEntry",
    "WorkloadEntry",
    "WorkloadGroup",
    "Sidecar",
    "Telemetry",
    "PeerAuthentication",
    "RequestAuthentication",
    "AuthorizationPolicy",
    "EnvoyFilter",
    "ProxyConfig",
    "WasmPlugin",
];

/// Why a field that is set has no or not the full effect, if so.
pub(crate) fn unsupported(kind: &str, path: &str, value: &Value) -> Option<String> {
    let field = own_row(kind, path).filter(|_| !is_unset(value))?;
    let applies = match field.status {
        Status::Honoured | Status::Idle => false,
        Status::Partly => field.when.is_some_and(|when| when(value)),
        Status::Ignored => true,
    };
    applies.then(|| field.note.to_owned())
}

/// What to warn of a field that is set and has no effect in Istio either.
pub(crate) fn idle(kind: &str, path: &str, value: &Value) -> Option<String> {
    let field = own_row(kind, path).filter(|f| f.status == Status::Idle && !is_unset(value))?;
    Some(field.note.to_owned())
}

fn own_row(kind: &str, path: &str) -> Option<&'static Field> {
    let path = canonical(path);
    fields(kind).iter().find(|f| f.path == path)
}

/// A value that asks for nothing.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// Policies of ports and subsets have the rows of the rule's own policy.
fn canonical(path: &str) -> std::borrow::Cow<'_, str> {
    let path = path.strip_prefix("subsets[].").filter(|p| p.starts_with("trafficPolicy.")).unwrap_or(path);
    match path.strip_prefix("trafficPolicy.portLevelSettings[].") {
        Some(block) if !block.starts_with("port") => format!("trafficPolicy.{block}").into(),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests;
