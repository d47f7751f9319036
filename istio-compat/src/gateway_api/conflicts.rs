//! Listeners of one Gateway, its ListenerSets included, that cannot coexist: the earlier one wins.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    objects::{GROUP, Key, Object, Objects},
    types::{GatewaySpec, Listener, ListenerSetSpec},
};

/// Reasons by owner (whether it is a ListenerSet, namespace and name) and listener.
pub(crate) type Conflicts<'a> = BTreeMap<(bool, &'a Key, &'a str), &'static str>;

/// The port of a ListenerSet's listener, which the protocol may imply.
pub(crate) fn port(listener: &Listener) -> Result<u32, String> {
    match (listener.port, listener.protocol.as_str()) {
        (0, "HTTP") => Ok(80),
        (0, "HTTPS") => Ok(443),
        (0, other) => Err(format!("protocol {other} requires a port to be set")),
        (port, _) => Ok(port),
    }
}

fn host(listener: &Listener) -> &str {
    listener.hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or("*")
}

fn l4(listener: &Listener) -> bool {
    matches!(listener.protocol.as_str(), "TCP" | "UDP")
}

fn named(listener: &Listener) -> bool {
    matches!(listener.protocol.as_str(), "HTTP" | "HTTPS" | "TLS")
}

/// Why `new` cannot be beside `old`, on the same port.
fn conflict(new: &Listener, old: &Listener) -> Option<&'static str> {
    let distinct = match (l4(new), l4(old)) {
        (true, true) => false,
        (true, false) => !named(old),
        (false, true) => !named(new),
        (false, false) if named(new) && named(old) => host(new) != host(old),
        (false, false) => new.protocol != old.protocol,
    };
    if distinct {
        return None;
    }
    let hosts = new.protocol == old.protocol && !l4(new);
    Some(if hosts { "HostnameConflict" } else { "ProtocolConflict" })
}

/// ListenerSets that name the Gateway as their parent, oldest first.
pub(crate) fn sets_of<'a>(
    objects: &'a Objects,
    gateway: &'a Key,
) -> Vec<(&'a Key, &'a Object<ListenerSetSpec>)> {
    let mut sets: Vec<_> = objects
        .listener_sets
        .iter()
        .filter(|(key, set)| {
            let parent = &set.spec.parent_ref;
            let (group, kind) = (parent.group.as_deref(), parent.kind.as_deref());
            group.is_none_or(|g| g == GROUP)
                && kind.is_none_or(|k| k == "Gateway")
                && parent.namespace.as_ref().unwrap_or(&key.0) == &gateway.0
                && parent.name == gateway.1
        })
        .collect();
    sets.sort_by_key(|(key, set)| (&set.meta.creation_timestamp, format!("{}/{}", key.0, key.1)));
    sets
}

/// The listeners that lose. Only those that win are in the way of later ones.
pub(crate) fn of<'a>(
    key: &'a Key,
    gateway: &'a Object<GatewaySpec>,
    sets: &[(&'a Key, &'a Object<ListenerSetSpec>)],
) -> Conflicts<'a> {
    let mut conflicts = Conflicts::new();
    let mut winners: BTreeMap<u32, Vec<&Listener>> = BTreeMap::new();
    let own = gateway.spec.listeners.iter().map(|l| ((false, key, l.name.as_str()), l.port, l));
    let others = sets.iter().flat_map(|(key, set)| {
        set.spec.listeners.iter().map(|l| ((true, *key, l.name.as_str()), port(l).unwrap_or(l.port), l))
    });
    for (id, port, listener) in own.chain(others) {
        let there = winners.entry(port).or_default();
        match there.iter().find_map(|old| conflict(listener, old)) {
            Some(reason) => {
                conflicts.insert(id, reason);
            }
            None => there.push(listener),
        }
    }
    conflicts
}

/// Type of an address in a status.
pub(crate) fn address_type(address: &str) -> &'static str {
    if address.parse::<IpAddr>().is_ok() { "IPAddress" } else { "Hostname" }
}
