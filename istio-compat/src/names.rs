//! Host names in Istio objects: short names, wildcards, which name covers which.

use std::net::IpAddr;

/// A host as an object means it: a name without a dot belongs to the object's namespace, everything else is taken as
/// written. Lower case, no trailing dot.
pub fn resolve(host: &str, namespace: &str, cluster_domain: &str) -> String {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if host.is_empty() || host == "*" || host.contains('.') || host.parse::<IpAddr>().is_ok() {
        return host;
    }
    service_host(&host, namespace, cluster_domain)
}

/// The full name of a Kubernetes service.
pub fn service_host(name: &str, namespace: &str, cluster_domain: &str) -> String {
    format!("{name}.{namespace}.svc.{cluster_domain}")
}

/// A token claim in the place of a header: `@request.auth.claims.a` or `@request.auth.claims[a]`.
pub(crate) fn is_claim(header: &str) -> bool {
    const PREFIX: &str = "@request.auth.claims";
    let Some((prefix, rest)) = header.split_at_checked(PREFIX.len()) else { return false };
    let dotted = rest.len() > 1 && rest.starts_with('.');
    let bracketed = rest.len() > 2 && rest.starts_with('[') && rest.ends_with(']');
    prefix.eq_ignore_ascii_case(PREFIX) && (dotted || bracketed)
}

/// Whether the host has a wildcard.
pub fn is_wildcard(host: &str) -> bool {
    host.starts_with('*')
}

/// Whether `pattern` (a host or a `*` prefix) covers `host`, which may be a wildcard itself.
pub fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        None => pattern == host,
        Some(suffix) => {
            let host = host.strip_prefix('*').unwrap_or(host);
            host.len() >= suffix.len() && host.ends_with(suffix)
        }
    }
}

/// How specific a host is: exact names before wildcards, longer wildcards before shorter ones. Greater is more specific.
pub fn specificity(host: &str) -> (bool, usize) {
    (!is_wildcard(host), host.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_without_a_dot_are_expanded() {
        let full = |h: &str| resolve(h, "prod", "cluster.local");
        assert_eq!(full("reviews"), "reviews.prod.svc.cluster.local");
        assert_eq!(full("reviews.prod"), "reviews.prod");
        assert_eq!(full("Reviews.Example.com."), "reviews.example.com");
        assert_eq!(full("*"), "*");
        assert_eq!(full("*.example.com"), "*.example.com");
        assert_eq!(full("*-a"), "*-a.prod.svc.cluster.local");
        assert_eq!(full("10.0.0.1"), "10.0.0.1");
        assert_eq!(full("fd00::1"), "fd00::1");
    }

    #[test]
    fn wildcards_cover_by_suffix() {
        assert!(covers("*.example.com", "a.b.example.com"));
        assert!(covers("*", "anything"));
        assert!(covers("*.example.com", "*.a.example.com"));
        assert!(!covers("*.a.example.com", "*.example.com"));
        assert!(!covers("*.example.com", "example.com"));
        assert!(covers("a.example.com", "a.example.com"));
        assert!(specificity("a.com") > specificity("*.longer.example.com"));
        assert!(specificity("*.example.com") > specificity("*.com"));
    }
}
