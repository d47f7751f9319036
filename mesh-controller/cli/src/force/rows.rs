//! The pages of a proxy as rows.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;

use super::{Cells, Wanted};

pub(super) const SERVICES: &[&str] =
    &["host", "kind", "addresses", "ports", "ready", "rules", "subsets", "policy"];
pub(super) const ROUTES: &[&str] =
    &["host", "order", "rule", "name", "match", "action", "timeout", "retries", "also"];
pub(super) const ENDPOINTS: &[&str] = &[
    "host", "port", "subset", "address", "node", "locality", "health", "weight", "path", "rtt", "pod",
    "policy",
];

/// A service.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Service {
    host: String,
    namespace: String,
    kind: String,
    addresses: Vec<String>,
    /// `9080/http`
    ports: Vec<String>,
    ready: usize,
    endpoints: usize,
    /// VirtualServices, in the order in which they count.
    rules: Vec<String>,
    subsets: Vec<String>,
    /// DestinationRules.
    policies: Vec<String>,
}

/// One rule of a host.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Route {
    host: String,
    /// Rules of a host are tried from 1 on, each kind by itself.
    order: usize,
    /// VirtualService, `namespace/name`.
    source: String,
    /// `http[0]`
    rule: String,
    name: String,
    /// One text for each condition set; any of them lets the rule take a request. Empty = every request.
    #[serde(rename = "match")]
    conditions: Vec<String>,
    action: String,
    timeout_ms: Option<u64>,
    retries: Option<u64>,
    /// Fault, mirrors.
    also: Vec<String>,
}

/// One endpoint of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Endpoint {
    host: String,
    port: u64,
    subset: String,
    address: String,
    /// Empty = reached directly.
    node: String,
    locality: String,
    health: &'static str,
    /// Why it is unwell, or how long it stays so.
    unwell_ms: Option<u64>,
    weight: u64,
    /// lan, direct, punched, relayed (by what), local, or none when there is no connection with its node.
    path: String,
    rtt_ms: Option<f64>,
    pod: String,
    policy: String,
}

pub(super) fn services(dump: &Value, wanted: &Wanted) -> Vec<Service> {
    let list = of(dump, "services").filter(|s| wanted.host(text(&s["host"])));
    list.filter(|s| of(s, "ports").any(|p| wanted.port(number(&p["number"]))) || wanted.port.is_none())
        .map(|s| {
            let ports = of(s, "ports").map(|p| format!("{}/{}", number(&p["number"]), text(&p["protocol"])));
            let mut subsets: Vec<String> =
                of(s, "policies").flat_map(|p| of(p, "subsets")).map(|x| text(x).to_owned()).collect();
            subsets.dedup();
            Service {
                host: text(&s["host"]).to_owned(),
                namespace: text(&s["namespace"]).to_owned(),
                kind: text(&s["kind"]).to_owned(),
                addresses: of(s, "vips").map(|v| text(v).to_owned()).collect(),
                ports: ports.collect(),
                ready: of(s, "endpoints").filter(|e| e["ready"] == true).count(),
                endpoints: of(s, "endpoints").count(),
                rules: of(s, "virtual_hosts").map(|v| text(&v["source"]).to_owned()).collect(),
                subsets,
                policies: of(s, "policies").map(|p| text(&p["source"]).to_owned()).collect(),
            }
        })
        .collect()
}

pub(super) fn routes(dump: &Value, wanted: &Wanted) -> Vec<Route> {
    let mut rows = Vec::new();
    for s in of(dump, "services").filter(|s| wanted.host(text(&s["host"]))) {
        let has_port = wanted.port.is_none() || of(s, "ports").any(|p| wanted.port(number(&p["number"])));
        if !has_port {
            continue;
        }
        let before = rows.len();
        for kind in ["http", "tls", "tcp"] {
            let mut order = 0;
            for v in of(s, "virtual_hosts") {
                for rule in of(v, kind) {
                    order += 1;
                    rows.push(route(text(&s["host"]), order, v, kind, rule));
                }
            }
        }
        if rows.len() == before {
            rows.push(unruled(s));
        }
    }
    for g in of(dump, "gateway_hosts").filter(|g| wanted.host(text(&g["domain"]))) {
        let host = format!("{} at gateway {}", text(&g["domain"]), text(&g["gateway"]));
        let mut order = 0;
        for v in of(g, "virtual_hosts") {
            for kind in ["http", "tls", "tcp"] {
                for rule in of(v, kind) {
                    order += 1;
                    rows.push(route(&host, order, v, kind, rule));
                }
            }
        }
    }
    rows
}

fn route(host: &str, order: usize, from: &Value, kind: &str, rule: &Value) -> Route {
    let mut also = Vec::new();
    if rule["fault"] == true {
        also.push("fault".to_owned());
    }
    if number(&rule["mirrors"]) > 0 {
        also.push(format!("{} mirrors", number(&rule["mirrors"])));
    }
    Route {
        host: host.to_owned(),
        order,
        source: text(&from["source"]).to_owned(),
        rule: format!("{kind}[{}]", number(&rule["index"])),
        name: text(&rule["name"]).to_owned(),
        conditions: of(rule, "match").map(|m| text(m).to_owned()).collect(),
        action: action(rule),
        timeout_ms: rule["timeout_ms"].as_u64(),
        retries: rule["retries"].as_u64(),
        also,
    }
}

/// A host that no VirtualService claims.
fn unruled(service: &Value) -> Route {
    Route {
        host: text(&service["host"]).to_owned(),
        order: 0,
        source: String::new(),
        rule: "default".to_owned(),
        name: String::new(),
        conditions: Vec::new(),
        action: match service["external_name"].as_str() {
            Some(name) => format!("to {name}"),
            None => "to its own endpoints".to_owned(),
        },
        timeout_ms: None,
        retries: None,
        also: Vec::new(),
    }
}

fn action(rule: &Value) -> String {
    let to = |list: &Value| {
        let all: Vec<&Value> = list.as_array().into_iter().flatten().collect();
        let total: u64 = all.iter().map(|d| number(&d["weight"])).sum();
        let one = |d: &&Value| {
            let mut out = text(&d["host"]).to_owned();
            if number(&d["port"]) != 0 {
                out.push_str(&format!(":{}", number(&d["port"])));
            }
            if !text(&d["subset"]).is_empty() {
                out.push_str(&format!(" subset {}", text(&d["subset"])));
            }
            if all.len() > 1 && total > 0 {
                out.push_str(&format!(" {:.0}%", number(&d["weight"]) as f64 * 100.0 / total as f64));
            }
            out
        };
        format!("to {}", all.iter().map(one).collect::<Vec<_>>().join(", "))
    };
    if rule["to"].is_array() {
        return to(&rule["to"]);
    }
    match rule["action"].as_object().and_then(|a| a.iter().next()) {
        Some((kind, list)) if kind == "forward" => to(list),
        Some((kind, value)) => format!("{} {value}", kind.replace('_', " ")),
        None => String::new(),
    }
}

pub(super) fn endpoints(dump: &Value, clusters: &Value, paths: &Value, wanted: &Wanted) -> Vec<Endpoint> {
    let here = text(&dump["node"]);
    let paths: HashMap<&str, &Value> =
        paths.as_array().into_iter().flatten().map(|p| (text(&p["peer"]), p)).collect();
    let mut rows = Vec::new();
    let fits = |c: &&Value| wanted.host(text(&c["host"])) && wanted.port(number(&c["port"]));
    for c in clusters.as_array().into_iter().flatten().filter(fits) {
        for e in of(c, "endpoints") {
            let unwell_ms = e["unwell_ms"].as_u64();
            let mut row = endpoint(e, here, &paths);
            row.host = text(&c["host"]).to_owned();
            row.port = number(&c["port"]);
            row.subset = text(&c["subset"]).to_owned();
            row.policy = text(&c["policy"]).to_owned();
            (row.health, row.unwell_ms) = (if unwell_ms.is_some() { "unwell" } else { "ready" }, unwell_ms);
            rows.push(row);
        }
    }
    // What takes no new connection is in no cluster.
    for s in of(dump, "services").filter(|s| wanted.host(text(&s["host"])) && wanted.port.is_none()) {
        for e in of(s, "endpoints").filter(|e| e["ready"] != true || e["terminating"] == true) {
            let mut row = endpoint(e, here, &paths);
            row.host = text(&s["host"]).to_owned();
            row.health = if e["terminating"] == true { "leaving" } else { "starting" };
            rows.push(row);
        }
    }
    rows
}

fn endpoint(e: &Value, here: &str, paths: &HashMap<&str, &Value>) -> Endpoint {
    let node = text(&e["node"]);
    let peer = paths.get(node);
    let path = match (node, peer) {
        ("", _) => "outside".to_owned(),
        (node, _) if node == here => "local".to_owned(),
        (_, Some(p)) => match p["relay"].as_str() {
            Some(relay) => format!("{} by {relay}", text(&p["path"])),
            None => text(&p["path"]).to_owned(),
        },
        (_, None) => "none".to_owned(),
    };
    Endpoint {
        host: String::new(),
        port: 0,
        subset: String::new(),
        address: text(&e["address"]).to_owned(),
        node: node.to_owned(),
        locality: text(&e["locality"]).to_owned(),
        health: "ready",
        unwell_ms: None,
        weight: number(&e["weight"]),
        path,
        rtt_ms: peer.and_then(|p| p["rtt_ms"].as_f64()),
        pod: text(&e["pod"]).to_owned(),
        policy: String::new(),
    }
}

impl Cells for Service {
    fn cells(&self) -> Vec<String> {
        vec![
            self.host.clone(),
            self.kind.clone(),
            dash(&self.addresses.join(" ")),
            dash(&self.ports.join(" ")),
            format!("{}/{}", self.ready, self.endpoints),
            dash(&self.rules.join(" ")),
            dash(&self.subsets.join(" ")),
            dash(&self.policies.join(" ")),
        ]
    }
}

impl Cells for Route {
    fn cells(&self) -> Vec<String> {
        let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let rule =
            if self.source.is_empty() { self.rule.clone() } else { format!("{} {}", self.source, self.rule) };
        vec![
            self.host.clone(),
            if self.order == 0 { "-".to_owned() } else { self.order.to_string() },
            rule,
            dash(&self.name),
            if self.conditions.is_empty() { "everything".to_owned() } else { self.conditions.join(" OR ") },
            self.action.clone(),
            self.timeout_ms.map_or_else(|| "-".to_owned(), istio_compat::duration::format_millis),
            number(self.retries),
            dash(&self.also.join(", ")),
        ]
    }
}

impl Cells for Endpoint {
    fn cells(&self) -> Vec<String> {
        let health = match self.unwell_ms {
            Some(ms) if ms > 0 => format!("{} {}", self.health, istio_compat::duration::format_millis(ms)),
            _ => self.health.to_owned(),
        };
        vec![
            self.host.clone(),
            if self.port == 0 { "-".to_owned() } else { self.port.to_string() },
            dash(&self.subset),
            self.address.clone(),
            dash(&self.node),
            dash(&self.locality),
            health,
            self.weight.to_string(),
            self.path.clone(),
            self.rtt_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
            dash(&self.pod),
            dash(&self.policy),
        ]
    }
}

fn of<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    value[key].as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dump() -> Value {
        let to = |subset: &str, weight: u32| json!({ "host": "reviews", "subset": subset, "port": 9080, "weight": weight });
        json!({ "node": "edge-a", "services": [
            { "host": "reviews.default.svc.cluster.local", "kind": "cluster_ip", "vips": ["10.96.0.1"],
              "ports": [{ "number": 9080, "protocol": "http" }],
              "virtual_hosts": [{ "source": "default/reviews", "http": [
                  { "index": 1, "name": "canary", "match": ["header end-user is exactly \"jason\""],
                    "action": { "forward": [to("v2", 1)] }, "timeout_ms": 1500, "retries": 3, "mirrors": 1, "fault": true },
                  { "index": 2, "name": "", "match": [], "action": { "forward": [to("v1", 3), to("v3", 1)] } } ] }],
              "policies": [{ "source": "default/reviews", "subsets": ["v1", "v2"] }],
              "endpoints": [
                  { "address": "10.1.0.1", "node": "edge-b", "ready": true, "weight": 1 },
                  { "address": "10.1.0.2", "node": "edge-b", "ready": false, "terminating": true, "weight": 1 } ] },
            { "host": "reviews-old.default.svc.cluster.local", "ports": [{ "number": 80 }] },
        ] })
    }

    fn wanted(service: Option<&str>, port: Option<u64>) -> Wanted {
        Wanted { service: service.map(str::to_owned), port, ..Wanted::default() }
    }

    #[test]
    fn a_service_is_meant_by_its_name_and_not_by_how_another_begins() {
        let rows = services(&dump(), &wanted(Some("reviews"), None));
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].ready, rows[0].endpoints, rows[0].ports[0].as_str()), (1, 2, "9080/http"));
        assert_eq!(services(&dump(), &wanted(Some("reviews.default"), None)).len(), 1);
        assert_eq!(services(&dump(), &wanted(None, None)).len(), 2);
        assert_eq!(services(&dump(), &wanted(None, Some(80))).len(), 1);
        assert_eq!(services(&dump(), &Wanted { part: "old".into(), ..Wanted::default() }).len(), 1);
    }

    #[test]
    fn routes_are_in_the_order_in_which_they_are_tried() {
        let rows = routes(&dump(), &wanted(None, None));
        let cells: Vec<Vec<String>> = rows.iter().map(Cells::cells).collect();
        assert_eq!((cells[0][1].as_str(), cells[0][2].as_str()), ("1", "default/reviews http[1]"));
        assert_eq!(
            cells[0][4..],
            [
                "header end-user is exactly \"jason\"",
                "to reviews:9080 subset v2",
                "1.5s",
                "3",
                "fault, 1 mirrors"
            ]
        );
        assert_eq!(
            cells[1][4..6],
            ["everything", "to reviews:9080 subset v1 75%, reviews:9080 subset v3 25%"]
        );
        assert_eq!(
            (cells[2][0].as_str(), cells[2][5].as_str()),
            ("reviews-old.default.svc.cluster.local", "to its own endpoints")
        );
    }

    #[test]
    fn rules_of_gateways_come_behind_those_of_services() {
        let mut dump = dump();
        dump["gateway_hosts"] = json!([{ "domain": "shop.example.com", "gateway": "shop/edge", "virtual_hosts": [
            { "source": "shop/web", "http": [{ "index": 0, "match": ["path with prefix \"/\""], "action": { "redirect": 301 } }] } ] }]);
        let rows = routes(&dump, &Wanted { part: "example".into(), ..Wanted::default() });
        let cells = rows[0].cells();
        assert_eq!((rows.len(), cells[0].as_str()), (1, "shop.example.com at gateway shop/edge"));
        assert_eq!((cells[2].as_str(), cells[5].as_str()), ("shop/web http[0]", "redirect 301"));
    }

    #[test]
    fn endpoints_have_health_and_path() {
        let endpoint = |address: &str, node: &str, unwell: Option<u64>| {
            json!({ "address": address, "node": node, "weight": 2,
            "locality": "r/z/s", "pod": "reviews-1", "unwell_ms": unwell })
        };
        let clusters = json!([{ "host": "reviews.default.svc.cluster.local", "port": 9080, "subset": "v1", "policy": "default/reviews",
            "endpoints": [endpoint("10.1.0.1:9080", "edge-b", None), endpoint("10.1.0.3:9080", "edge-a", Some(5000)),
                endpoint("10.1.0.4:9080", "edge-c", None)] }]);
        let paths = json!([{ "peer": "edge-b", "path": "relayed", "relay": "cloud", "rtt_ms": 20.04 }]);
        let rows = endpoints(&dump(), &clusters, &paths, &wanted(None, None));
        let cells: Vec<String> = rows.iter().map(|r| r.cells().join("|")).collect();
        assert!(
            cells[0].ends_with("|edge-b|r/z/s|ready|2|relayed by cloud|20.0 ms|reviews-1|default/reviews"),
            "{}",
            cells[0]
        );
        assert!(cells[1].contains("|unwell 5s|2|local|"), "{}", cells[1]);
        assert!(cells[2].contains("|ready|2|none|"), "{}", cells[2]);
        assert!(cells[3].contains("|10.1.0.2|edge-b|-|leaving|"), "{}", cells[3]);
        assert_eq!(endpoints(&dump(), &clusters, &paths, &wanted(None, Some(1))), []);
    }
}
