//! Deployments and pods: services that disagree about their ports, user ids that the mesh needs for itself.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    report::{Report, bracketed},
    workload::{self, PROXY, is_control_plane},
    world::{Kind, Object, World, list, map, number, selects, text},
};

/// User id that traffic of the sidecar is recognised by.
const PROXY_USER: u64 = 1337;
/// Label of what a gateway controller makes.
pub(super) const MANAGED: &str = "gateway.istio.io/managed";

/// Services of one deployment agree about protocols and target ports.
pub(super) fn services(world: &World, out: &mut Report) {
    for deployment in world.all(Kind::Deployment) {
        let waypoint = deployment.labels().get(MANAGED) == Some(&"istio.io-mesh-controller");
        if waypoint || !workload::deployment_in_mesh(world, deployment) {
            continue;
        }
        let labels = map(&deployment.value, "/spec/template/metadata/labels");
        let own = world.all(Kind::Service).iter().filter(|s| {
            let selector = s.map("/spec/selector");
            s.namespace() == deployment.namespace() && !selector.is_empty() && selects(&selector, &labels)
        });
        let own: Vec<&Object> = own.collect();
        protocols(deployment, &own, out);
        target_ports(deployment, &own, out);
    }
}

fn protocols(deployment: &Object, services: &[&Object], out: &mut Report) {
    let mut ports: BTreeMap<u64, BTreeMap<&str, Vec<String>>> = BTreeMap::new();
    for service in services {
        for port in service.list("/spec/ports") {
            let protocol = Some(text(port, "/protocol")).filter(|p| !p.is_empty()).unwrap_or("TCP");
            let by_protocol = ports.entry(number(port, "/port")).or_default();
            by_protocol.entry(protocol).or_default().push(service.name.to_string());
        }
    }
    for (port, by_protocol) in ports.iter().filter(|(_, by)| by.len() > 1) {
        let mut names: Vec<&String> = by_protocol.values().flatten().collect();
        names.sort();
        out.add(deployment, "IST0116", "metadata.name", &[&deployment.name.name, port, &bracketed(names)]);
    }
}

fn target_ports(deployment: &Object, services: &[&Object], out: &mut Report) {
    let mut targets: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
    for service in services {
        for port in service.list("/spec/ports") {
            let own = number(port, "/port");
            let target = target_text(port).filter(|t| t != "0").unwrap_or_else(|| own.to_string());
            targets.entry(target).or_default().insert(own, service.name.to_string());
        }
    }
    for (target, by_port) in targets.iter().filter(|(_, by)| by.len() > 1) {
        let mut names: Vec<&String> = by_port.values().collect();
        names.sort();
        let parts: [&dyn std::fmt::Display; 4] =
            [&deployment.name.name, &bracketed(names), target, &bracketed(by_port.keys())];
        out.add(deployment, "IST0137", "metadata.name", &parts);
    }
}

/// A target port as written.
pub(super) fn target_text(port: &Value) -> Option<String> {
    match port.get("targetPort")? {
        Value::String(name) => Some(name.clone()).filter(|n| !n.is_empty()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Applications do not run as the proxy's user, whose traffic is not captured.
pub(super) fn user_id(world: &World, out: &mut Report) {
    for (kind, spec) in [(Kind::Pod, "/spec"), (Kind::Deployment, "/spec/template/spec")] {
        for object in world.all(kind).iter().filter(|o| !is_control_plane(o)) {
            let Some(spec) = object.value.pointer(spec) else { continue };
            let runs_as = |v: &Value| number(v, "/securityContext/runAsUser") == PROXY_USER;
            let mut containers = list(spec, "/containers")
                .iter()
                .filter(|c| ![PROXY, "istio-operator"].contains(&text(c, "/name")));
            if runs_as(spec) || containers.any(runs_as) {
                out.add(object, "IST0144", "", &[]);
            }
        }
    }
}
