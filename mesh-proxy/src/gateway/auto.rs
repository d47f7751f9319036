//! AUTO_PASSTHROUGH: the name in the hello says which service, subset and port is meant.

use std::sync::Arc;

use mesh_core::{Client, Cluster, Tables};

/// The cluster of `outbound_.PORT_.SUBSET_.HOST`.
pub(super) fn cluster<'t>(tables: &'t Tables, client: &Client<'_>, sni: &str) -> Option<&'t Arc<Cluster>> {
    let rest = sni.strip_prefix("outbound_.")?;
    let (port, rest) = rest.split_once("_.")?;
    let (subset, host) = rest.split_once("_.")?;
    let port = port.parse().ok()?;
    let service = tables.service(host).filter(|s| s.visible_to(client.namespace))?;
    service.cluster(client, subset, port)
}
