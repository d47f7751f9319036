//! From a host as a client writes it to a service: `reviews`, `reviews.default`, `reviews.default.svc`, the full name
//! with or without its last dot, a virtual address; letters of either case; a port is ignored.

use std::{net::IpAddr, sync::Arc};

use crate::{
    service::{ServiceEntry, ServiceKind},
    tables::Tables,
};

/// The longest name that DNS carries.
const MAX: usize = 253;

/// A name put together without allocation.
pub(crate) struct Name {
    bytes: [u8; MAX],
    len: usize,
}

impl Name {
    /// The text in lower case. None: it is too long to be a name, or not text that a name can be.
    pub(crate) fn lower(text: &str) -> Option<Self> {
        let mut name = Self { bytes: [0; MAX], len: 0 };
        name.push(text)?;
        Some(name)
    }

    fn push(&mut self, text: &str) -> Option<()> {
        let end = self.len + text.len();
        let into = self.bytes.get_mut(self.len..end)?;
        for (to, from) in into.iter_mut().zip(text.bytes()) {
            if !from.is_ascii() {
                return None;
            }
            *to = from.to_ascii_lowercase();
        }
        self.len = end;
        Some(())
    }

    pub(crate) fn with(&self, parts: &[&str]) -> Option<Self> {
        let mut name = Self { bytes: self.bytes, len: self.len };
        for p in parts {
            name.push(p)?;
        }
        Some(name)
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

/// `Host` without its port. An IPv6 literal loses its brackets.
pub(crate) fn without_port(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map_or(authority, |(ip, _)| ip);
    }
    match authority.rsplit_once(':') {
        // More than one colon: a bare IPv6 address.
        Some((host, _)) if host.contains(':') => authority,
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

impl Tables {
    /// The service that a host names for a client in `namespace`. Hosts of rules that no registry knows are found
    /// too, the longest wildcard last.
    pub fn service_for_host(&self, authority: &str, namespace: &str) -> Option<&Arc<ServiceEntry>> {
        self.find_host(authority, namespace, |_| true)
    }

    /// The same among the hosts of one listener port: services that have the port, and on port 80 also hosts that
    /// only rules know.
    pub(crate) fn service_at_port(
        &self,
        authority: &str,
        namespace: &str,
        port: u16,
        known: impl Fn(&ServiceEntry) -> bool,
    ) -> Option<&Arc<ServiceEntry>> {
        self.find_host(authority, namespace, |s| match s.kind {
            _ if !known(s) => false,
            ServiceKind::RouteOnly => port == 80,
            ServiceKind::ClusterIp
            | ServiceKind::Headless
            | ServiceKind::ExternalName
            | ServiceKind::External => s.port(port).is_some() && s.visible_to(namespace),
        })
    }

    fn find_host(
        &self,
        authority: &str,
        namespace: &str,
        accept: impl Fn(&ServiceEntry) -> bool,
    ) -> Option<&Arc<ServiceEntry>> {
        let host = without_port(authority);
        let host = host.strip_suffix('.').unwrap_or(host);
        let name = Name::lower(host)?;
        let exact = self.service(name.as_str()).and_then(|s| s.preferred(namespace, &accept));
        if exact.is_some() {
            return exact;
        }
        if let Ok(ip) = name.as_str().parse::<IpAddr>() {
            return self.services_at(ip).find(|s| accept(s));
        }
        let domain = self.mesh().cluster_domain.as_str();
        let full = match name.as_str().bytes().filter(|b| *b == b'.').count() {
            0 => name.with(&[".", namespace, ".svc.", domain]),
            1 => name.with(&[".svc.", domain]),
            2 if name.as_str().ends_with(".svc") => name.with(&[".", domain]),
            _ => None,
        };
        let short = full.and_then(|f| self.service(f.as_str())).filter(|s| accept(s));
        short
            .or_else(|| self.headless_member(name.as_str(), &accept))
            .or_else(|| self.wildcard(name.as_str(), namespace, &accept))
    }

    /// `anything.s.ns.svc…` of a headless service.
    fn headless_member(
        &self,
        host: &str,
        accept: &impl Fn(&ServiceEntry) -> bool,
    ) -> Option<&Arc<ServiceEntry>> {
        let domain = self.mesh().cluster_domain.as_str();
        let (_, parent) = host.split_once('.')?;
        let full = match parent.bytes().filter(|b| *b == b'.').count() {
            1 => Name::lower(parent)?.with(&[".svc.", domain])?,
            2 if parent.ends_with(".svc") => Name::lower(parent)?.with(&[".", domain])?,
            _ => Name::lower(parent)?,
        };
        self.service(full.as_str()).filter(|s| s.kind == ServiceKind::Headless && accept(s))
    }

    pub(crate) fn wildcard(
        &self,
        host: &str,
        namespace: &str,
        accept: &impl Fn(&ServiceEntry) -> bool,
    ) -> Option<&Arc<ServiceEntry>> {
        let at = |pattern: &str| self.service(pattern).and_then(|s| s.preferred(namespace, accept));
        if self.wildcards == 0 {
            return None;
        }
        let mut rest = host;
        while let Some((_, suffix)) = rest.split_once('.') {
            let pattern = Name::lower("*.")?.with(&[suffix])?;
            if let Some(s) = at(pattern.as_str()) {
                return Some(s);
            }
            rest = suffix;
        }
        at("*")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_goes_and_an_address_stays() {
        for (from, to) in [
            ("reviews:80", "reviews"),
            ("reviews", "reviews"),
            ("reviews:", "reviews"),
            ("[fd00::1]:80", "fd00::1"),
            ("[fd00::1]", "fd00::1"),
            ("fd00::1", "fd00::1"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("a:b", "a:b"),
        ] {
            assert_eq!(without_port(from), to, "{from}");
        }
    }

    #[test]
    fn a_name_that_is_too_long_is_none() {
        assert!(Name::lower(&"a".repeat(253)).is_some());
        assert!(Name::lower(&"a".repeat(254)).is_none());
        assert!(Name::lower(&"a".repeat(250)).unwrap().with(&[".svc"]).is_none());
        assert!(Name::lower("caf\u{e9}").is_none());
    }
}
