//! TCP and TLS connections.

use mesh_core::{Client, L4Outcome, Tables, VipMatch};

use super::{
    FixedDice, Request,
    answer::{Answer, Target},
    gateway, policy,
};

pub(super) fn decide(
    tables: &Tables,
    client: &Client<'_>,
    request: &Request,
    dice: &mut FixedDice<'_>,
) -> Answer {
    let tls = request.protocol == "tls";
    let port = request.port.unwrap_or(if tls { 443 } else { 0 });
    let by_address =
        request.address.and_then(|ip| tables.by_vip_for(ip, port, |s| tables.sees(client, s, port)));
    // Without an address the name stands for it, as DNS would have it.
    let by_name = || {
        let service = tables.service_for_host(&request.host, client.namespace)?;
        Some(VipMatch { service, port: service.port(port)? })
    };
    let original = by_address.or_else(|| if request.address.is_none() { by_name() } else { None });
    let taken = client.gateway.map(|_| gateway::taken(tables, request, port));
    let decision = if let Some(taken) = &taken {
        match &taken.name {
            Some(sni) if taken.auto => tables.route_named_cluster(client, sni),
            name => tables.route_gateway_l4(client, &taken.servers, (port, name.as_deref()), dice),
        }
    } else if tls {
        tables.route_tls(client, request.address, original.as_ref(), (port, &request.host), dice)
    } else {
        tables.route_tcp(client, request.address, original.as_ref(), port, dice)
    };
    let mut answer = Answer::default();
    match decision.service {
        Some(s) => answer.why.push(format!("the connection is for service {}", s.host)),
        None if taken.is_some() => {
            answer.why.push(format!("the connection came to {}", client.gateway_name()))
        }
        None => answer.why.push("no service of the mesh is called".to_owned()),
    }
    if let (Some(host), Some(index)) = (decision.virtual_host, decision.rule_index) {
        let by_name = taken.as_ref().map_or(tls, |t| t.name.is_some());
        let route = format!("{}[{index}]", if by_name { "tls" } else { "tcp" });
        answer.why.push(format!("VirtualService {} {route} is the first rule that matches", host.source));
        answer.virtual_service = Some(host.source.to_string());
        answer.route = Some(route);
    }
    if let Some(to) = decision.destinations {
        let port_of = |d| match tables.cluster_of(client, d, port, true) {
            Ok(cluster) => cluster.key.port,
            Err(missing) => missing.port,
        };
        answer.destinations = to.all.iter().map(|d| Target::of_rule(d, port_of(d))).collect();
    }
    match &decision.outcome {
        L4Outcome::Forward { cluster, .. } => {
            answer.outcome = "forward";
            answer.destination = Some(Target::of_cluster(cluster));
            answer.policy = Some(policy::value(&cluster.policy));
        }
        L4Outcome::UnknownCluster(missing) => {
            answer.outcome = "not_found";
            answer.destination = Some(Target::of_missing(missing));
            answer.why.push("that destination does not exist: the connection is closed".to_owned());
        }
        L4Outcome::Passthrough => answer.outcome = "passthrough",
        L4Outcome::Blackhole => answer.outcome = "blackhole",
    }
    answer
}
