//! The steps of a decision in words.

use mesh_core::{Client, HttpDecision, HttpOutcome, RequestView};

use super::View;

pub(super) fn http(
    decision: &HttpDecision<'_>,
    client: &Client<'_>,
    port: u16,
    view: &View<'_>,
) -> Vec<String> {
    let host = view.authority();
    let mut out = Vec::new();
    match decision.service {
        Some(s) => out.push(format!("host {host} is {} on port {port}", s.host)),
        None if client.gateway.is_some() => match decision.virtual_host {
            Some(v) => out.push(format!(
                "host {host} is one of VirtualService {} at {}",
                v.source,
                client.gateway_name()
            )),
            None => out.push(format!(
                "no VirtualService at {} has host {host} on port {port}",
                client.gateway_name()
            )),
        },
        None => out.push(format!("host {host} is known to nobody on port {port}")),
    }
    if let Some(service) = decision.service {
        for v in &service.virtual_hosts {
            let name = &v.source;
            if !v.visible_to(client) {
                out.push(format!("VirtualService {name} is not exported to namespace {}", client.namespace));
            } else if !v.has_http_for(client, port) {
                out.push(format!("VirtualService {name} has no HTTP rule for this client and port"));
            } else {
                out.push(format!("VirtualService {name} claims the host"));
                break;
            }
        }
        if decision.virtual_host.is_none() {
            out.push("no VirtualService claims the host: the service's default route".to_owned());
        }
    }
    if let Some(v) = decision.virtual_host {
        rules(decision, v, client, port, view, &mut out);
    }
    match &decision.outcome {
        HttpOutcome::UnknownCluster(m) => out.push(format!(
            "destination {} port {} subset {:?} does not exist: 503",
            m.host, m.port, m.subset
        )),
        HttpOutcome::NoRoute if decision.virtual_host.is_some() => {
            out.push("no rule matches; a claimed host has no default route: 404".to_owned());
        }
        _ => {}
    }
    out
}

/// Every rule up to the one that was taken.
fn rules(
    decision: &HttpDecision<'_>,
    host: &mesh_core::route::VirtualHostEntry,
    client: &Client<'_>,
    port: u16,
    view: &View<'_>,
    out: &mut Vec<String>,
) {
    for rule in &host.http {
        let at = format!("http[{}]", rule.index);
        let taken = decision.rule.is_some_and(|r| std::ptr::eq(r, rule));
        for (i, m) in rule.matches.iter().enumerate() {
            if taken && decision.matched.is_some_and(|(hit, _)| hit == i) {
                out.push(format!("{at} match[{i}]: yes"));
                return;
            }
            let reason = m.refusal(client, port, view).unwrap_or_else(|| "not bound here".to_owned());
            out.push(format!("{at} match[{i}]: no, {reason}"));
        }
        if taken {
            out.push(format!("{at} takes every request"));
            return;
        }
    }
}
