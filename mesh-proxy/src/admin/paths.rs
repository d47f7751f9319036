//! The path to each peer, in the form of `meshctl paths -o json`.

use mesh_tunnel::PathStatus;
use serde_json::{Value, json};

/// The path in use for each peer; with `all` also the others, marked `"active": false`.
pub(super) fn list(node: &str, paths: &[PathStatus], all: bool) -> Value {
    paths.iter().filter(|p| all || p.active).map(|p| one(node, p, all)).collect()
}

fn one(node: &str, p: &PathStatus, all: bool) -> Value {
    let time =
        |t| jiff::Timestamp::try_from(t).ok().map(|t| t.round(jiff::Unit::Second).unwrap_or(t).to_string());
    let mut value = json!({
        "node": node,
        "peer": p.peer,
        "path": p.path.as_str(),
        "relay": p.relay,
        "transport": p.transport.as_str(),
        "rtt_ms": p.rtt.map(|r| (r.as_secs_f64() * 1e4).round() / 10.0),
        "loss": p.loss.unwrap_or(0.0),
        "since": time(p.since),
        "bytes_sent": p.bytes_sent,
        "bytes_received": p.bytes_received,
        "nat": { "local": p.nat.0.as_str(), "remote": p.nat.1.as_str() },
        "last_punch": p.last_punch.map(|punch| json!({
            "at": time(punch.at), "outcome": punch.outcome.as_str(), "attempts": punch.attempts,
        })),
        "why_not_better": p.why_not_better,
    });
    if all && let Some(fields) = value.as_object_mut() {
        fields.insert("active".to_owned(), p.active.into());
        fields.insert("address".to_owned(), p.address.as_str().into());
        fields.insert("connections".to_owned(), p.connections.into());
        fields.insert("streams".to_owned(), p.streams.into());
    }
    value
}
