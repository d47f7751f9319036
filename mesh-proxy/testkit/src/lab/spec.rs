//! The description of a world (WORLD.yaml) and every reason why one cannot be built.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::LabError;

/// Names with a meaning of their own.
pub(crate) const RESERVED: [&str; 2] = ["internet", "all"];

/// A world: one public segment, sites behind routers, nodes, pods.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spec {
    /// The world's name; `lab` addresses it by that.
    pub name: String,
    /// Prefixes of the public segment. The first host address of each is its gateway.
    pub public: Vec<Ipv4Net>,
    /// Networks behind a router.
    pub sites: BTreeMap<String, SiteSpec>,
    /// Machines.
    pub nodes: BTreeMap<String, NodeSpec>,
    /// Workloads, each a namespace of its own on a node.
    pub pods: BTreeMap<String, PodSpec>,
}

/// A network behind a router.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteSpec {
    /// The site's own prefix; its first host address is the router.
    pub lan: Ipv4Net,
    /// What the router does to packets that leave.
    #[serde(default)]
    pub nat: Nat,
    /// The router's public address; chosen when absent.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// Ports of the router's public address that lead to a node.
    #[serde(default)]
    pub forward: Vec<ForwardSpec>,
}

/// Address translation of a site's router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nat {
    /// The site's prefix is public and routed; the router translates nothing.
    None,
    /// Everything leaves with the router's address; nothing comes in uninvited.
    #[default]
    Masquerade,
}

/// A forwarded port, TCP and UDP.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardSpec {
    /// Port on the router and on the node.
    pub port: u16,
    /// The node.
    pub to: String,
}

/// A machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeSpec {
    /// The site it is in; absent: on the public segment.
    pub site: Option<String>,
    /// Its address there; chosen when absent.
    pub address: Option<Ipv4Addr>,
    /// The prefix of its pods; its first host address is the node's.
    pub pods: Option<Ipv4Net>,
    /// Name server of the node's pods; the mesh's default when absent.
    pub dns: Option<Ipv4Addr>,
}

/// A workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodSpec {
    /// Where it runs.
    pub node: String,
    /// Its address in the node's pod prefix; chosen when absent.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// Its Kubernetes namespace: decides the DNS search list.
    #[serde(default = "default_namespace")]
    pub namespace: String,
}

fn default_namespace() -> String {
    "default".to_owned()
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            name: "world".to_owned(),
            public: ["203.0.113.0/24", "198.51.100.0/24"].iter().filter_map(|n| n.parse().ok()).collect(),
            sites: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
        }
    }
}

impl Spec {
    /// An empty world of that name, to be filled with [`Spec::site`], [`Spec::node`] and [`Spec::pod`].
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Adds a site.
    #[must_use]
    pub fn site(mut self, name: &str, lan: Ipv4Net, nat: Nat) -> Self {
        self.sites.insert(name.to_owned(), SiteSpec { lan, nat, address: None, forward: Vec::new() });
        self
    }

    /// Adds a node; `site` absent puts it on the public segment.
    #[must_use]
    pub fn node(mut self, name: &str, site: Option<&str>, pods: Option<Ipv4Net>) -> Self {
        let node = NodeSpec { site: site.map(str::to_owned), pods, ..NodeSpec::default() };
        self.nodes.insert(name.to_owned(), node);
        self
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, name: &str, node: &str) -> Self {
        let pod = PodSpec { node: node.to_owned(), address: None, namespace: default_namespace() };
        self.pods.insert(name.to_owned(), pod);
        self
    }

    /// Reads WORLD.yaml (or JSON).
    ///
    /// # Errors
    /// Every finding: unknown keys, wrong types, and what [`Spec::check`] finds.
    pub fn parse(text: &str) -> Result<Self, LabError> {
        let value: Value =
            serde_saphyr::from_str(text).map_err(|e| LabError::Invalid(vec![format!("not YAML: {e}")]))?;
        let mut findings = Vec::new();
        unknown_keys(&value, &mut findings);
        match serde_json::from_value::<Self>(value) {
            Ok(spec) => {
                findings.extend(spec.findings());
                if findings.is_empty() { Ok(spec) } else { Err(LabError::Invalid(findings)) }
            }
            Err(e) => {
                // serde stops at the first unknown key, which is listed already.
                if !e.to_string().starts_with("unknown field") {
                    findings.push(e.to_string());
                }
                Err(LabError::Invalid(findings))
            }
        }
    }

    /// Checks a spec that was built in code.
    ///
    /// # Errors
    /// Every finding.
    pub fn check(&self) -> Result<(), LabError> {
        let findings = self.findings();
        if findings.is_empty() { Ok(()) } else { Err(LabError::Invalid(findings)) }
    }

    fn findings(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.check_names(&mut out);
        self.check_sites(&mut out);
        self.check_nodes(&mut out);
        self.check_pods(&mut out);
        self.check_overlaps(&mut out);
        out
    }

    fn check_names(&self, out: &mut Vec<String>) {
        if !name_ok(&self.name) {
            out.push(format!("name: {:?} is not a lower-case DNS label", self.name));
        }
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        let all = (self.sites.keys().map(|n| ("sites", n)))
            .chain(self.nodes.keys().map(|n| ("nodes", n)))
            .chain(self.pods.keys().map(|n| ("pods", n)));
        for (kind, name) in all {
            if !name_ok(name) {
                out.push(format!("{kind}.{name}: not a lower-case DNS label of at most 40 characters"));
            }
            if RESERVED.contains(&name.as_str()) {
                out.push(format!("{kind}.{name}: the name is reserved"));
            }
            if let Some(other) = seen.insert(name, kind) {
                out.push(format!("{kind}.{name}: {other} has that name too"));
            }
        }
        if self.public.is_empty() {
            out.push("public: at least one prefix is needed".to_owned());
        }
        for net in &self.public {
            if net.prefix_len() > 28 {
                out.push(format!("public: {net} is smaller than /28"));
            }
        }
        if seen.len() > 2000 {
            out.push(format!("{} namespaces are more than 2000", seen.len()));
        }
    }

    fn check_sites(&self, out: &mut Vec<String>) {
        for (name, site) in &self.sites {
            let is_public = self.public.iter().any(|p| p.contains(&site.lan));
            if site.lan.prefix_len() > 29 {
                out.push(format!("sites.{name}.lan: {} is smaller than /29", site.lan));
            }
            if site.nat == Nat::None && !is_public {
                out.push(format!("sites.{name}.lan: a site without NAT needs a prefix inside a public one"));
            }
            if site.nat != Nat::None && is_public {
                out.push(format!("sites.{name}.lan: a site behind NAT has a private prefix"));
            }
            if let Some(a) = site.address
                && !self.is_public(a)
            {
                out.push(format!("sites.{name}.address: {a} is in no public prefix"));
            }
            for f in &site.forward {
                match self.nodes.get(&f.to) {
                    None => out.push(format!("sites.{name}.forward: no node {}", f.to)),
                    Some(n) if n.site.as_deref() != Some(name) => {
                        out.push(format!("sites.{name}.forward: node {} is not in this site", f.to));
                    }
                    Some(_) => {}
                }
            }
        }
    }

    fn check_nodes(&self, out: &mut Vec<String>) {
        for (name, node) in &self.nodes {
            match node.site.as_deref().map(|s| (s, self.sites.get(s))) {
                Some((s, None)) => out.push(format!("nodes.{name}.site: no site {s}")),
                Some((_, Some(site))) => {
                    if let Some(a) = node.address
                        && !host_of(site.lan, a)
                    {
                        out.push(format!("nodes.{name}.address: {a} is not a free host of {}", site.lan));
                    }
                }
                None => {
                    if let Some(a) = node.address
                        && !self.is_public(a)
                    {
                        out.push(format!("nodes.{name}.address: {a} is in no public prefix"));
                    }
                }
            }
        }
        let fixed = (self.nodes.values().filter_map(|n| n.address))
            .chain(self.sites.values().filter_map(|s| s.address))
            .chain(self.pods.values().filter_map(|p| p.address));
        let mut seen = BTreeSet::new();
        for address in fixed {
            if !seen.insert(address) {
                out.push(format!("address {address} is used twice"));
            }
        }
    }

    fn check_pods(&self, out: &mut Vec<String>) {
        for (name, pod) in &self.pods {
            match self.nodes.get(&pod.node).map(|n| n.pods) {
                None => out.push(format!("pods.{name}.node: no node {}", pod.node)),
                Some(None) => out.push(format!("pods.{name}.node: node {} has no pod prefix", pod.node)),
                Some(Some(net)) => {
                    if let Some(a) = pod.address
                        && !host_of(net, a)
                    {
                        out.push(format!("pods.{name}.address: {a} is not a free host of {net}"));
                    }
                }
            }
        }
        for (name, node) in &self.nodes {
            let Some(net) = node.pods else { continue };
            let count = self.pods.values().filter(|p| p.node == *name).count();
            if net.prefix_len() > 29 || net.hosts().count() < count + 1 {
                out.push(format!("nodes.{name}.pods: {net} is too small for {count} pods"));
            }
        }
    }

    fn check_overlaps(&self, out: &mut Vec<String>) {
        let nets: Vec<(String, Ipv4Net)> = (self.nodes.iter())
            .filter_map(|(n, s)| Some((format!("nodes.{n}.pods"), s.pods?)))
            .chain(
                self.sites
                    .iter()
                    .filter(|(_, s)| s.nat == Nat::None)
                    .map(|(n, s)| (format!("sites.{n}.lan"), s.lan)),
            )
            .collect();
        for (i, (a, na)) in nets.iter().enumerate() {
            for (b, nb) in nets.iter().skip(i + 1) {
                if na.contains(nb) || nb.contains(na) {
                    out.push(format!("{a} ({na}) and {b} ({nb}) overlap"));
                }
            }
        }
    }

    /// Whether a public prefix holds that address.
    #[must_use]
    pub fn is_public(&self, address: Ipv4Addr) -> bool {
        self.public.iter().any(|p| p.contains(&address))
    }
}

/// A host address other than the first, which is the gateway's.
fn host_of(net: Ipv4Net, address: Ipv4Addr) -> bool {
    net.contains(&address)
        && address != net.network()
        && address != net.broadcast()
        && net.hosts().next() != Some(address)
}

fn name_ok(name: &str) -> bool {
    (1..=40).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn unknown_keys(value: &Value, out: &mut Vec<String>) {
    let mut level = |at: &str, value: &Value, known: &[&str]| {
        let Value::Object(map) = value else { return };
        for key in map.keys().filter(|k| !known.contains(&k.as_str())) {
            out.push(format!("{at}{key}: unknown; known are {}", known.join(", ")));
        }
    };
    level("", value, &["name", "public", "sites", "nodes", "pods"]);
    let kinds: [(&str, &[&str]); 3] = [
        ("sites", &["lan", "nat", "address", "forward"]),
        ("nodes", &["site", "address", "pods", "dns"]),
        ("pods", &["node", "address", "namespace"]),
    ];
    for (kind, known) in kinds {
        let Some(Value::Object(map)) = value.get(kind) else { continue };
        for (name, entry) in map {
            level(&format!("{kind}.{name}."), entry, known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
name: two-sites
sites:
  shop: { lan: 192.168.1.0/24, forward: [{ port: 15008, to: edge-a }] }
  mast: { lan: 198.51.100.128/25, nat: none }
nodes:
  cloud: {}
  edge-a: { site: shop, pods: 10.1.1.0/24 }
  edge-b: { site: mast, pods: 10.1.2.0/24 }
pods:
  web: { node: edge-a }
";

    #[test]
    fn a_good_world_parses() {
        let spec = Spec::parse(GOOD).unwrap();
        assert_eq!(spec.sites["shop"].nat, Nat::Masquerade);
        assert_eq!(spec.pods["web"].namespace, "default");
    }

    #[test]
    fn every_finding_is_listed_at_once() {
        let text = GOOD
            .replace("cloud: {}", "cloud: { address: 10.0.0.1 }")
            .replace("web: { node: edge-a }", "web: { node: edge-z }\n  Bad_Name: { node: cloud }")
            .replace("10.1.2.0/24", "10.1.1.128/25")
            .replace("to: edge-a", "to: edge-b");
        let LabError::Invalid(found) = Spec::parse(&text).unwrap_err() else { panic!("not Invalid") };
        let all = found.join("\n");
        for part in [
            "nodes.cloud.address: 10.0.0.1 is in no public prefix",
            "pods.web.node: no node edge-z",
            "pods.Bad_Name: not a lower-case DNS label",
            "pods.Bad_Name.node: node cloud has no pod prefix",
            "overlap",
            "node edge-b is not in this site",
        ] {
            assert!(all.contains(part), "{part} is missing in:\n{all}");
        }
    }

    #[test]
    fn unknown_keys_are_named_with_their_place() {
        let text = GOOD.replace("site: shop,", "sight: shop,").replace("name: two-sites", "nmae: x");
        let LabError::Invalid(found) = Spec::parse(&text).unwrap_err() else { panic!("not Invalid") };
        assert!(found.iter().any(|f| f.starts_with("nodes.edge-a.sight: unknown")), "{found:?}");
        assert!(found.iter().any(|f| f.starts_with("nmae: unknown")), "{found:?}");
    }

    #[test]
    fn private_prefixes_are_not_routed_in_public() {
        let text = GOOD.replace("198.51.100.128/25", "192.168.7.0/24");
        assert!(Spec::parse(&text).is_err());
    }
}
