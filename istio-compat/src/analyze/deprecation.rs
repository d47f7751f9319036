//! Kinds and fields that Istio has given up.

use super::{
    report::Report,
    world::{Kind, World},
};

const GONE: [&str; 4] = ["ClusterRbacConfig", "RbacConfig", "ServiceRole", "ServiceRoleBinding"];

/// Names them.
pub(super) fn fields(world: &World, out: &mut Report) {
    for rule in world.all(Kind::VirtualService) {
        let routes = rule.list("/spec/http").iter();
        let old = |r: &serde_json::Value| {
            r.pointer("/fault/delay/percent").and_then(|p| p.as_i64()).is_some_and(|p| p > 0)
        };
        if let Some(i) = routes.enumerate().find_map(|(i, r)| old(r).then_some(i)) {
            let text = "HTTPRoute.fault.delay.percent is deprecated; use HTTPRoute.fault.delay.percentage";
            out.add(rule, "IST0002", format!("spec.http[{i}].fault.delay.percent"), &[&text]);
        }
    }
    for sidecar in
        world.all(Kind::Sidecar).iter().filter(|s| s.has("/spec/outboundTrafficPolicy/egressProxy"))
    {
        let path = "spec.outboundTrafficPolicy.egressProxy";
        out.add(sidecar, "IST0002", path, &[&"OutboundTrafficPolicy.EgressProxy ignored"]);
    }
    for definition in world.all(Kind::CustomResourceDefinition) {
        let (group, kind) = (definition.text("/spec/group"), definition.text("/spec/names/kind"));
        if group == "rbac.istio.io" && GONE.contains(&kind) {
            let text = format!("Custom resource type {group} {kind} is removed");
            out.add(definition, "IST0002", "spec.names.kind", &[&text]);
        }
    }
}
