//! ServiceEntries: addresses where the protocol needs them, one protocol for one port.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    hosts::{EVERYBODY, scopes},
    report::Report,
    world::{Kind, Object, World, list, number, text, texts},
};

/// TCP without an address cannot be told from other TCP, unless addresses are given out.
pub(super) fn addresses(world: &World, out: &mut Report) {
    let meta = |key: &str| {
        let all = world.options.mesh_config.pointer("/defaultConfig/proxyMetadata");
        all.and_then(|m| m.get(key)).is_some_and(|v| v == "true" || *v == true)
    };
    let allocated = ["ISTIO_META_DNS_AUTO_ALLOCATE", "PILOT_ENABLE_IP_AUTOALLOCATE"].into_iter().any(meta);
    if meta("ISTIO_META_DNS_CAPTURE") && allocated {
        return;
    }
    for entry in world.all(Kind::ServiceEntry) {
        if !entry.list("/spec/addresses").is_empty() || !entry.list("/status/addresses").is_empty() {
            continue;
        }
        for (i, port) in entry.list("/spec/ports").iter().enumerate() {
            let protocol = text(port, "/protocol");
            if protocol.is_empty() || protocol.eq_ignore_ascii_case("TCP") {
                out.add(entry, "IST0134", format!("spec.ports[{i}]"), &[]);
            }
        }
    }
}

type Port<'w> = (&'w str, &'w str, u64);

/// Entries that define the same host and port, visible to the same namespaces, agree about the protocol.
pub(super) fn protocols(world: &World, out: &mut Report) {
    let mut ports: BTreeMap<Port<'_>, Vec<(&str, &Object)>> = BTreeMap::new();
    for entry in world.all(Kind::ServiceEntry) {
        for scope in scopes(texts(&entry.value, "/spec/exportTo"), entry.namespace()) {
            for host in texts(&entry.value, "/spec/hosts") {
                for port in list(&entry.value, "/spec/ports") {
                    let key = (scope, host, number(port, "/number"));
                    ports.entry(key).or_default().push((text(port, "/protocol"), entry));
                }
            }
        }
    }
    let mut said = BTreeSet::new();
    for ((scope, host, port), own) in &ports {
        let mut entries = own.clone();
        if *scope != EVERYBODY {
            entries.extend(ports.get(&(EVERYBODY, *host, *port)).into_iter().flatten());
        }
        let protocols: BTreeSet<String> = entries.iter().map(|(p, _)| p.to_ascii_uppercase()).collect();
        if protocols.len() < 2 {
            continue;
        }
        let names: BTreeSet<String> = entries.iter().map(|(_, e)| e.name.to_string()).collect();
        let join = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(", ");
        let (names, protocols) = (join(names), join(protocols));
        for (_, entry) in entries {
            if said.insert(&entry.name) {
                out.add(entry, "IST0177", "metadata.name", &[&names, host, port, &protocols]);
            }
        }
    }
}
