//! References: their defaults, and who may refer to objects of another namespace.

use super::{
    objects::{GROUP, Objects, X_GROUP},
    types::RouteKind,
};

/// Group and kind of something that is referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupKind<'a> {
    pub(crate) group: &'a str,
    pub(crate) kind: &'a str,
}

impl<'a> GroupKind<'a> {
    pub(crate) const SERVICE: GroupKind<'static> = GroupKind { group: "", kind: "Service" };
    pub(crate) const SECRET: GroupKind<'static> = GroupKind { group: "", kind: "Secret" };
    pub(crate) const CONFIG_MAP: GroupKind<'static> = GroupKind { group: "", kind: "ConfigMap" };
    pub(crate) const GATEWAY: GroupKind<'static> = GroupKind { group: GROUP, kind: "Gateway" };
    pub(crate) const LISTENER_SET: GroupKind<'static> = GroupKind { group: GROUP, kind: "ListenerSet" };
    pub(crate) const SERVICE_ENTRY: GroupKind<'static> =
        GroupKind { group: "networking.istio.io", kind: "ServiceEntry" };
    pub(crate) const HOSTNAME: GroupKind<'static> =
        GroupKind { group: "networking.istio.io", kind: "Hostname" };
    pub(crate) const SERVICE_IMPORT: GroupKind<'static> =
        GroupKind { group: "multicluster.x-k8s.io", kind: "ServiceImport" };
    pub(crate) const X_BACKEND: GroupKind<'static> = GroupKind { group: X_GROUP, kind: "XBackend" };
    pub(crate) const INFERENCE_POOL: GroupKind<'static> =
        GroupKind { group: "inference.networking.k8s.io", kind: "InferencePool" };

    /// What is given, else the default.
    pub(crate) fn of(group: Option<&'a String>, kind: Option<&'a String>, default: GroupKind<'a>) -> Self {
        Self {
            group: group.map_or(default.group, String::as_str),
            kind: kind.map_or(default.kind, String::as_str),
        }
    }

    /// A route kind as listeners list it.
    pub(crate) fn of_route(kind: &'a RouteKind) -> Self {
        Self { group: kind.group.as_deref().unwrap_or(GROUP), kind: &kind.kind }
    }
}

/// Kinds from which a grant has an effect, and to which.
const FROM: [&str; 6] = ["Gateway", "ListenerSet", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"];
const TO: [GroupKind<'static>; 5] = [
    GroupKind::CONFIG_MAP,
    GroupKind::SECRET,
    GroupKind::SERVICE,
    GroupKind::X_BACKEND,
    GroupKind::INFERENCE_POOL,
];

/// Whether an object of kind `from` (of Gateway API) in namespace `from_namespace` may refer to `name` in `namespace`.
pub(crate) fn allowed(
    objects: &Objects,
    from: &str,
    from_namespace: &str,
    to: GroupKind<'_>,
    namespace: &str,
    name: &str,
) -> bool {
    if !FROM.contains(&from) || !TO.contains(&to) {
        return false;
    }
    let start = (namespace.to_owned(), String::new());
    objects.grants.range(start..).take_while(|((ns, _), _)| ns == namespace).any(|(_, grant)| {
        let spec = &grant.spec;
        spec.from.iter().any(|f| f.group == GROUP && f.kind == from && f.namespace == from_namespace)
            && spec.to.iter().any(|t| {
                GroupKind { group: &t.group, kind: &t.kind } == to
                    && t.name.as_ref().is_none_or(|only| only == name)
            })
    })
}
