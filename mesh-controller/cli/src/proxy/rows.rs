//! Answers of the admin page as rows.

use serde_json::Value;

pub(super) struct View {
    pub(super) head: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
}

/// What is not a list, and how long the lists are.
pub(super) fn status(dump: &Value) -> Value {
    let map = dump.as_object().into_iter().flatten();
    map.map(|(key, value)| match value {
        Value::Array(list) if key != "pending" => (key.clone(), list.len().into()),
        other => (key.clone(), other.clone()),
    })
    .collect()
}

pub(super) fn of_status(status: &Value) -> View {
    let rows = status.as_object().into_iter().flatten().map(|(k, v)| vec![k.clone(), text(v)]).collect();
    View { head: vec!["field", "value"], rows }
}

pub(super) fn of_levels(page: &Value) -> View {
    let row = |(target, level): (&String, &Value)| vec![target.clone(), text(level)];
    let levels = page["levels"].as_object().into_iter().flatten();
    View { head: vec!["target", "level"], rows: levels.map(row).collect() }
}

pub(super) fn of_peers(peers: &Value) -> View {
    let keys = ["node", "transport", "dialled", "streams", "rtt_ms", "peer_id"];
    let row = |p: &Value| keys.iter().map(|k| text(&p[k])).collect();
    View { head: keys.to_vec(), rows: peers.as_array().into_iter().flatten().map(row).collect() }
}

pub(super) fn of_services(services: &[Value]) -> View {
    let ports = |s: &Value| {
        let one = |p: &Value| format!("{}/{}", text(&p["number"]), text(&p["protocol"]));
        s["ports"].as_array().into_iter().flatten().map(one).collect::<Vec<_>>().join(" ")
    };
    let ready = |s: &Value| {
        let all = s["endpoints"].as_array().map_or(&[][..], |l| l);
        format!("{}/{}", all.iter().filter(|e| e["ready"] == true).count(), all.len())
    };
    let row = |s: &Value| vec![text(&s["host"]), text(&s["kind"]), text(&s["vips"]), ports(s), ready(s)];
    View {
        head: vec!["host", "kind", "addresses", "ports", "ready"],
        rows: services.iter().map(row).collect(),
    }
}

pub(super) fn of_routes(services: &[Value]) -> View {
    let mut rows = Vec::new();
    for service in services {
        for host in service["virtual_hosts"].as_array().into_iter().flatten() {
            for kind in ["http", "tls", "tcp"] {
                for rule in host[kind].as_array().into_iter().flatten() {
                    rows.push(vec![
                        text(&service["host"]),
                        text(&host["source"]),
                        format!("{kind}[{}]", text(&rule["index"])),
                        text(&rule["name"]),
                        action(rule),
                    ]);
                }
            }
        }
    }
    View { head: vec!["host", "virtualservice", "rule", "name", "action"], rows }
}

fn action(rule: &Value) -> String {
    let to = |list: &Value| {
        let one = |d: &Value| {
            let mut out = text(&d["host"]);
            if d["port"].as_u64().is_some_and(|p| p != 0) {
                out.push_str(&format!(":{}", d["port"]));
            }
            if d["subset"].as_str().is_some_and(|s| !s.is_empty()) {
                out.push_str(&format!(" ({})", text(&d["subset"])));
            }
            format!("{out} x{}", text(&d["weight"]))
        };
        list.as_array().into_iter().flatten().map(one).collect::<Vec<_>>().join(", ")
    };
    if rule["to"].is_array() {
        return to(&rule["to"]);
    }
    match rule["action"].as_object().and_then(|a| a.iter().next()) {
        Some((kind, list)) if kind == "forward" => to(list),
        Some((kind, value)) => format!("{kind} {}", text(value)),
        None => String::new(),
    }
}

pub(super) fn of_endpoints(services: &[Value]) -> View {
    let keys = ["address", "node", "workload", "ready", "weight"];
    let mut rows = Vec::new();
    for service in services {
        for endpoint in service["endpoints"].as_array().into_iter().flatten() {
            let mut row = vec![text(&service["host"])];
            row.extend(keys.iter().map(|k| text(&endpoint[k])));
            rows.push(row);
        }
    }
    View { head: std::iter::once("host").chain(keys).collect(), rows }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(s) => s.clone(),
        Value::Array(list) if list.is_empty() => "-".to_owned(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}
