//! Gateways against the pods they select, those pods' services, and each other.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    report::{Report, bracketed},
    world::{Kind, Object, World, list, number, selector_text, selects, text, texts},
};

/// The selector selects a pod, and the pod's services expose the ports.
pub(super) fn ports(world: &World, out: &mut Report) {
    for gateway in world.all(Kind::Gateway) {
        let selector = gateway.map("/spec/selector");
        let shown = selector_text(&selector);
        let mut exposed: BTreeSet<u64> = BTreeSet::new();
        let mut pods = 0;
        for pod in world.all(Kind::Pod).iter().filter(|p| selects(&selector, &p.labels())) {
            pods += 1;
            let labels = pod.labels();
            let in_place = world.all(Kind::Service).iter().filter(|s| s.namespace() == pod.namespace());
            for service in in_place.filter(|s| selects(&s.map("/spec/selector"), &labels)) {
                exposed.extend(service.list("/spec/ports").iter().filter_map(tcp_port));
            }
        }
        if pods == 0 {
            out.missing(gateway, "spec.selector", "selector", &shown);
            continue;
        }
        for (i, server) in gateway.list("/spec/servers").iter().enumerate() {
            let port = number(server, "/port/number");
            if server.get("port").is_some() && !exposed.contains(&port) {
                out.add(gateway, "IST0162", format!("spec.servers[{i}].port.number"), &[&port, &shown]);
            }
        }
    }
}

/// What a gateway must listen on so that traffic to this service port reaches it.
fn tcp_port(port: &Value) -> Option<u64> {
    if !matches!(text(port, "/protocol"), "TCP" | "") {
        return None;
    }
    let target = match port.get("targetPort") {
        Some(Value::String(text)) => text.parse().unwrap_or_default(),
        Some(value) => value.as_u64().unwrap_or_default(),
        None => 0,
    };
    Some(if target == 0 { number(port, "/port") } else { target })
}

/// One certificate on several gateways: browsers re-use the connection to the first for hosts of the second.
pub(super) fn certificates(world: &World, out: &mut Report) {
    let gateways = world.all(Kind::Gateway);
    for gateway in gateways {
        let selector = gateway.map("/spec/selector");
        for other in gateways.iter().filter(|g| g.name != gateway.name) {
            if !selects(&selector, &other.map("/spec/selector")) {
                continue;
            }
            let same = gateway.list("/spec/servers").iter().any(|a| {
                other.list("/spec/servers").iter().any(|b| same_certificate(a.get("tls"), b.get("tls")))
            });
            if same {
                out.add(gateway, "IST0138", "metadata.name", &[&bracketed([&gateway.name, &other.name])]);
            }
        }
    }
}

fn same_certificate(a: Option<&Value>, b: Option<&Value>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    let same = |field: &str| !text(a, field).is_empty() && text(a, field) == text(b, field);
    let no_secret = text(a, "/credentialName").is_empty() && text(b, "/credentialName").is_empty();
    same("/credentialName") || (no_secret && same("/serverCertificate") && same("/privateKey"))
}

/// Two gateways for the same pods, port and host.
pub(super) fn conflicts(world: &World, out: &mut Report) {
    let gateways = world.all(Kind::Gateway);
    for gateway in gateways {
        let shown = selector_text(&gateway.map("/spec/selector"));
        for (i, server) in gateway.list("/spec/servers").iter().enumerate() {
            let others = gateways.iter().filter(|o| o.name != gateway.name && same_pods(world, gateway, o));
            let clashing = others.filter(|o| o.list("/spec/servers").iter().any(|s| clash(server, s)));
            let mut names: Vec<String> = clashing.map(|o| o.name.to_string()).collect();
            names.sort();
            if !names.is_empty() {
                let port = number(server, "/port/number");
                let hosts = texts(server, "/hosts").collect::<Vec<_>>().join(",");
                let path = format!("spec.servers[{i}]");
                out.add(gateway, "IST0145", path, &[&names.join(","), &shown, &port, &hosts]);
            }
        }
    }
}

fn clash(a: &Value, b: &Value) -> bool {
    number(a, "/port/number") == number(b, "/port/number")
        && text(a, "/bind") == text(b, "/bind")
        && list(a, "/hosts").iter().any(|host| list(b, "/hosts").contains(host))
}

/// Equal selectors, or one within the other and a pod that both select.
fn same_pods(world: &World, a: &Object, b: &Object) -> bool {
    let (a, b) = (a.map("/spec/selector"), b.map("/spec/selector"));
    if a == b {
        return true;
    }
    let (text_a, text_b) = (selector_text(&a), selector_text(&b));
    (text_a.contains(&text_b) || text_b.contains(&text_a))
        && world.all(Kind::Pod).iter().any(|pod| selects(&a, &pod.labels()) && selects(&b, &pod.labels()))
}
