//! Conditions that controllers have written into an object's status and that say no.

use serde_json::Value;

use super::{
    report::Report,
    world::{Kind, Object, World, list, text},
};

const WAYPOINT: &[&str] = &["istio.io/WaypointBound"];
const GATEWAY_API: &[&str] = &["Accepted", "Programmed", "ResolvedRefs"];

/// Kinds and the conditions of theirs that are bad when false.
const WATCHED: [(Kind, &[&str]); 7] = [
    (Kind::Service, WAYPOINT),
    (Kind::ServiceEntry, WAYPOINT),
    (Kind::WorkloadEntry, WAYPOINT),
    (Kind::AuthorizationPolicy, &["ZtunnelAccepted", "WaypointAccepted"]),
    (Kind::KubernetesGateway, GATEWAY_API),
    (Kind::HttpRoute, GATEWAY_API),
    (Kind::GrpcRoute, GATEWAY_API),
];

/// Says every such condition.
pub(super) fn negative(world: &World, out: &mut Report) {
    for (kind, watched) in WATCHED {
        for object in world.all(kind) {
            for condition in conditions(object) {
                let of_type = text(condition, "/type");
                let refused = watched.contains(&of_type) && text(condition, "/status") == "False";
                let partly = kind == Kind::AuthorizationPolicy
                    && of_type == "WaypointAccepted"
                    && text(condition, "/reason") == "PartiallyInvalid";
                if refused || partly {
                    let parts: [&dyn std::fmt::Display; 3] =
                        [&of_type, &text(condition, "/reason"), &text(condition, "/message")];
                    out.add(object, "IST0171", "status", &parts);
                }
            }
        }
    }
}

fn conditions(object: &Object) -> impl Iterator<Item = &Value> {
    let of_parents = object.list("/status/parents").iter().flat_map(|p| list(p, "/conditions"));
    object.list("/status/conditions").iter().chain(of_parents)
}
