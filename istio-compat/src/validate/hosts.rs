//! Hosts with a namespace in front, as Gateways and Sidecars write them.

use super::text;

type Check = Result<(), String>;

/// `name`, `namespace/name`, `./name` or `*/name`.
pub(super) fn gateway_host(host: &str) -> Check {
    let Some((namespace, name)) = host.split_once('/') else { return part(host, true) };
    text::require(!namespace.is_empty() && !name.is_empty(), || format!("{host:?} is not `namespace/name`"))?;
    if !matches!(namespace, "*" | ".") {
        text::dns_label(namespace, "namespace")?;
    }
    part(name, true)
}

/// `namespace/name`, where the namespace may be `.`, `*`, `~`, or `~` in front of one to leave out.
pub(super) fn sidecar_host(host: &str) -> Check {
    let form = || format!("{host:?} is not `namespace/name`");
    let (namespace, name) = host.split_once('/').ok_or_else(form)?;
    text::require(!namespace.is_empty() && !name.is_empty(), form)?;
    let excluded = namespace.strip_prefix('~').filter(|n| !n.is_empty());
    let namespace = excluded.unwrap_or(namespace);
    if !matches!(namespace, "*" | "." | "~") {
        text::dns_label(namespace, "namespace")?;
    }
    part(name, false)
}

fn part(name: &str, gateway: bool) -> Check {
    if name == "*" || (gateway && text::is_ip(name)) {
        return Ok(());
    }
    text::require(name.contains('.') || name.contains(':'), || {
        format!("{name:?} is a short name; only full names are allowed")
    })?;
    text::require(!name.contains('*') || name.starts_with("*."), || {
        format!("{name:?} has a wildcard within a label")
    })?;
    text::wildcard_domain(name)
}
