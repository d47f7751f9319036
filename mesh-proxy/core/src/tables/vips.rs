//! Hosts by their addresses: of services and of endpoints.

use std::{net::IpAddr, sync::Arc};

use super::Hosts;
use crate::shards::Shards;

/// Adds a host to those that an address belongs to; they are in order.
pub(super) fn list(map: &mut Shards<IpAddr, Hosts>, ip: IpAddr, host: &Arc<str>) {
    let mut hosts: Vec<Arc<str>> = map.get(&ip).map(|h| h.to_vec()).unwrap_or_default();
    if let Err(at) = hosts.binary_search(host) {
        hosts.insert(at, host.clone());
        map.insert(ip, hosts.into());
    }
}

/// Takes a host away from those that an address belongs to.
pub(super) fn unlist(map: &mut Shards<IpAddr, Hosts>, ip: IpAddr, host: &Arc<str>) {
    let Some(hosts) = map.get(&ip) else { return };
    let left: Vec<_> = hosts.iter().filter(|h| *h != host).cloned().collect();
    if left.is_empty() {
        map.remove(&ip);
    } else {
        map.insert(ip, left.into());
    }
}
