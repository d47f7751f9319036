//! Which decoded resources a node refuses, and why. A refused resource is rejected alone; the last good one stays.

use std::net::IpAddr;

use crate::{model, resource::Resource};

/// One reason why a resource is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct Problem {
    /// Field path inside the resource.
    pub path: String,
    /// What is wrong, with the offending value.
    pub reason: String,
}

/// Longest host name that DNS can carry.
pub const MAX_HOST: usize = 253;
/// Largest secret: a bundle of trusted certificates fits, and the limit of Kubernetes does.
pub const MAX_SECRET_BYTES: usize = 1 << 20;
/// Most endpoints that one service may have.
pub const MAX_ENDPOINTS: usize = 20_000;

/// All problems of a resource that arrived under `name`.
pub fn check(name: &str, resource: &Resource) -> Vec<Problem> {
    let mut out = Problems::default();
    if resource.name() != name {
        out.add("name", format!("content is for {:?}, resource is named {name:?}", resource.name()));
    }
    match resource {
        Resource::MeshConfig(m) => out.host("cluster_domain", &m.cluster_domain),
        Resource::Node(n) => out.node(n),
        Resource::NodeWorkloads(w) => {
            for (i, w) in w.workloads.iter().enumerate() {
                out.address(&format!("workloads[{i}].address"), &w.address);
            }
        }
        Resource::Service(s) => out.service(s),
        Resource::Endpoints(e) => out.endpoints(e),
        Resource::Secret(s) => {
            let size = s.certificate_chain.len() + s.private_key.len() + s.ca.len() + s.crl.len();
            if size > MAX_SECRET_BYTES {
                out.add("", format!("{size} bytes exceed the limit of {MAX_SECRET_BYTES}"));
            }
        }
        Resource::GatewayHost(h) => out.gateway_host(h),
        Resource::Gateway(g) => out.gateway(g),
        Resource::Sidecar(s) => out.sidecar(s),
        Resource::Telemetry(t) => out.named(&t.name),
    }
    out.0
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, path: impl Into<String>, reason: impl Into<String>) {
        self.0.push(Problem { path: path.into(), reason: reason.into() });
    }

    fn host(&mut self, path: &str, host: &str) {
        let plain = host.strip_prefix("*.").unwrap_or(host);
        if host == "*" {
            return;
        }
        let label = |l: &str| {
            !l.is_empty()
                && l.len() <= 63
                && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        };
        if plain.len() > MAX_HOST || !plain.split('.').all(label) {
            self.add(path, format!("{host:?} is not a lower-case host name"));
        }
    }

    fn address(&mut self, path: &str, address: &str) {
        if address.parse::<IpAddr>().is_err() {
            self.add(path, format!("{address:?} is not an IP address"));
        }
    }

    fn port(&mut self, path: &str, port: u32) {
        if port == 0 || port > u32::from(u16::MAX) {
            self.add(path, format!("{port} is not a port number"));
        }
    }

    fn node(&mut self, n: &model::Node) {
        if n.name.is_empty() {
            self.add("name", "is empty");
        }
        for (i, a) in n.addresses.iter().enumerate() {
            if !a.starts_with('/') || a.len() > 512 {
                self.add(format!("addresses[{i}]"), format!("{a:?} is not a multiaddr"));
            }
        }
    }

    fn service(&mut self, s: &model::Service) {
        self.host("host", &s.host);
        for (i, v) in s.vips.iter().enumerate() {
            self.address(&format!("vips[{i}]"), v);
        }
        for (i, p) in s.ports.iter().enumerate() {
            self.port(&format!("ports[{i}].number"), p.number);
            if model::Protocol::try_from(p.protocol).is_err() {
                self.add(format!("ports[{i}].protocol"), format!("{} is not a known protocol", p.protocol));
            }
        }
        if model::service::Kind::try_from(s.kind).is_err() {
            self.add("kind", format!("{} is not a known kind of service", s.kind));
        }
        if s.kind() == model::service::Kind::ExternalName {
            self.host("external_name", &s.external_name);
        }
        if model::service::Resolution::try_from(s.resolution).is_err() {
            self.add("resolution", format!("{} is not a known resolution", s.resolution));
        }
        for (i, c) in s.cidrs.iter().enumerate() {
            self.cidr(&format!("cidrs[{i}]"), c);
        }
        self.virtual_hosts("virtual_hosts", &s.virtual_hosts);
        for (i, other) in s.others.iter().enumerate() {
            self.other_owner(&format!("others[{i}]"), s, other);
        }
    }

    /// What is wrong inside is told with the path of the whole, as it was one resource that came.
    fn other_owner(&mut self, path: &str, of: &model::Service, other: &model::service::OtherOwner) {
        let Some(service) = &other.service else { return self.add(path, "has no service") };
        if service.host != of.host || service.kind != of.kind || !service.others.is_empty() {
            return self.add(path, "is no owner of the same host");
        }
        let mut inner = Self::default();
        inner.service(service);
        if let Some(endpoints) = &other.endpoints {
            inner.endpoints(endpoints);
        }
        self.0.extend(inner.0.into_iter().map(|p| Problem { path: format!("{path}.{}", p.path), ..p }));
    }

    fn virtual_hosts(&mut self, path: &str, list: &[model::VirtualHost]) {
        for (i, v) in list.iter().enumerate() {
            for (j, r) in v.http.iter().enumerate() {
                self.http_rule(&format!("{path}[{i}].http[{j}]"), r);
            }
        }
    }

    fn named(&mut self, name: &str) {
        if name.is_empty() {
            self.add("name", "is empty");
        }
    }

    fn cidr(&mut self, path: &str, cidr: &str) {
        let fits = cidr.split_once('/').is_some_and(|(address, bits)| {
            let most = match address.parse() {
                Ok(IpAddr::V4(_)) => 32,
                Ok(IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            bits.parse::<u8>().is_ok_and(|b| b <= most)
        });
        if !fits {
            self.add(path, format!("{cidr:?} is not an address range"));
        }
    }

    fn gateway(&mut self, g: &model::Gateway) {
        self.named(&g.name);
        let mut ids = std::collections::BTreeSet::new();
        for (i, s) in g.servers.iter().enumerate() {
            let path = format!("servers[{i}]");
            self.port(&format!("{path}.port"), s.port);
            if !ids.insert(&s.id) {
                self.add(format!("{path}.id"), format!("{:?} is there twice", s.id));
            }
            if !s.bind.is_empty() {
                self.address(&format!("{path}.bind"), &s.bind);
            }
            for (j, h) in s.hosts.iter().enumerate() {
                self.host(&format!("{path}.hosts[{j}]"), h);
            }
            if model::GatewayProtocol::try_from(s.protocol).is_err() {
                self.add(format!("{path}.protocol"), format!("{} is not a known protocol", s.protocol));
            }
            let mode = s.tls.as_ref().map_or(0, |t| t.mode);
            if model::server_tls::Mode::try_from(mode).is_err() {
                self.add(format!("{path}.tls.mode"), format!("{mode} is not a known mode"));
            }
        }
    }

    fn gateway_host(&mut self, h: &model::GatewayHost) {
        self.named(&h.gateway);
        self.host("domain", &h.domain);
        self.virtual_hosts("parts", &h.parts);
    }

    fn sidecar(&mut self, s: &model::Sidecar) {
        self.named(&s.name);
        if model::mesh_config::OutboundMode::try_from(s.outbound).is_err() {
            self.add("outbound", format!("{} is not a known mode", s.outbound));
        }
        for (i, listener) in s.egress.iter().enumerate() {
            for (j, scope) in listener.hosts.iter().enumerate() {
                self.host(&format!("egress[{i}].hosts[{j}].host"), &scope.host);
            }
        }
    }

    fn http_rule(&mut self, path: &str, r: &model::HttpRule) {
        use model::http_rule::Action;
        match &r.action {
            None => self.add(path, "has no action"),
            Some(Action::Forward(f)) => {
                if f.destinations.is_empty() {
                    self.add(format!("{path}.forward"), "has no destination");
                } else if f.destinations.len() > 1 && f.destinations.iter().all(|d| d.weight == 0) {
                    self.add(format!("{path}.forward"), "all weights are 0");
                }
            }
            Some(Action::Redirect(_)) => {}
            Some(Action::DirectResponse(d)) => {
                if !(200..600).contains(&d.status) {
                    self.add(
                        format!("{path}.direct_response.status"),
                        format!("{} is not a status", d.status),
                    );
                }
            }
        }
    }

    fn endpoints(&mut self, e: &model::Endpoints) {
        self.host("host", &e.host);
        if e.endpoints.len() > MAX_ENDPOINTS {
            self.add("endpoints", format!("{} exceed the limit of {MAX_ENDPOINTS}", e.endpoints.len()));
        }
        for (i, e) in e.endpoints.iter().enumerate() {
            if e.fqdn.is_empty() {
                self.address(&format!("endpoints[{i}].address"), &e.address);
            } else {
                self.host(&format!("endpoints[{i}].fqdn"), &e.fqdn);
            }
            for (j, p) in e.ports.iter().enumerate() {
                self.port(&format!("endpoints[{i}].ports[{j}].service_port"), p.service_port);
                self.port(&format!("endpoints[{i}].ports[{j}].target_port"), p.target_port);
            }
            for (j, p) in e.udp_ports.iter().enumerate() {
                self.port(&format!("endpoints[{i}].udp_ports[{j}].service_port"), p.service_port);
                self.port(&format!("endpoints[{i}].udp_ports[{j}].target_port"), p.target_port);
            }
        }
    }
}
