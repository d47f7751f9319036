//! The description of a world (WORLD.yaml) and every reason why one cannot be built.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    LabError,
    mapping::PortMapping,
    site::{Ipv6, NAT_KEYS, Nat, NatSpec, SiteSpec},
};

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
    /// Prefix of the public segment's IPv6, /48 or shorter; used when a site has IPv6.
    pub public6: Ipv6Net,
    /// Networks behind a router.
    pub sites: BTreeMap<String, SiteSpec>,
    /// Machines.
    pub nodes: BTreeMap<String, NodeSpec>,
    /// Workloads, each a namespace of its own on a node.
    pub pods: BTreeMap<String, PodSpec>,
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
    /// Whether netfilter sees what the node's bridge carries, as kubeadm sets it where the kernel has the module
    /// `br_netfilter`. A matched `tproxy` is then lost.
    pub bridge_netfilter: bool,
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
            // RFC 3849: documentation, routed nowhere.
            public6: Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 48),
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
    pub fn site(mut self, name: &str, lan: Ipv4Net, nat: impl Into<NatSpec>) -> Self {
        self.sites.insert(name.to_owned(), SiteSpec::new(lan, nat.into()));
        self
    }

    /// Changes a site: `.site_with("shop", |s| s.egress = Egress::NoUdp)`. One that was not added before is a
    /// masqueraded 192.168.1.0/24.
    #[must_use]
    pub fn site_with(mut self, name: &str, change: impl FnOnce(&mut SiteSpec)) -> Self {
        let usual =
            || SiteSpec::new(Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 1, 0), 24), NatSpec::default());
        change(self.sites.entry(name.to_owned()).or_insert_with(usual));
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
            let mut say = |key: &str, text: String| out.push(format!("sites.{name}.{key}: {text}"));
            let is_public = self.public.iter().any(|p| p.contains(&site.lan));
            if site.lan.prefix_len() > 29 {
                say("lan", format!("{} is smaller than /29", site.lan));
            }
            if site.nat.kind == Nat::None && !is_public {
                say("lan", "a site without NAT needs a prefix inside a public one".to_owned());
            }
            if site.nat.kind != Nat::None && is_public {
                say("lan", "a site behind NAT has a private prefix".to_owned());
            }
            let needs_program = site.nat.hairpin || site.nat.keep_ports.is_some();
            if needs_program && !site.nat.kind.by_program() {
                let kind = site.nat.kind.as_str();
                say("nat", format!("{kind} has no hairpin or keep_ports: choose another kind"));
            }
            if site.nat.port_mapping != PortMapping::Off
                && (site.nat.kind == Nat::None || site.behind.is_some())
            {
                say("nat", "port_mapping needs a router that translates to a public address".to_owned());
            }
            if site.flap.is_some_and(|f| f.up_ms < 50 || f.down_ms < 50) {
                say("flap", "less than 50 ms is no time for a link".to_owned());
            }
            self.check_carrier(site, &mut say);
            for f in &site.forward {
                match self.nodes.get(&f.to) {
                    None => say("forward", format!("no node {}", f.to)),
                    Some(n) if n.site.as_deref() != Some(name) => {
                        say("forward", format!("node {} is not in this site", f.to));
                    }
                    Some(_) => {}
                }
            }
        }
        if self.public6.prefix_len() > 48 {
            out.push(format!("public6: {} is smaller than /48", self.public6));
        }
    }

    /// What a site's outer side is in.
    fn check_carrier(&self, site: &SiteSpec, say: &mut impl FnMut(&str, String)) {
        let Some(carrier) = &site.behind else {
            if let Some(a) = site.address
                && !self.is_public(a)
            {
                say("address", format!("{a} is in no public prefix"));
            }
            return;
        };
        let Some(above) = self.sites.get(carrier) else {
            say("behind", format!("no site {carrier}"));
            return;
        };
        if let Some(a) = site.address
            && !host_of(above.lan, a)
        {
            say("address", format!("{a} is not a free host of {}", above.lan));
        }
        if above.lan.contains(&site.lan) || site.lan.contains(&above.lan) {
            say("lan", format!("{} and its carrier's {} overlap", site.lan, above.lan));
        }
        if site.nat.kind == Nat::None {
            say("nat", "a site behind another translates".to_owned());
        }
        if site.ipv6 != Ipv6::Off {
            say("ipv6", "a site behind another has no IPv6 of its own".to_owned());
        }
        let mut at = Some(carrier);
        for _ in 0..=self.sites.len() {
            at = at.and_then(|s| self.sites.get(s)?.behind.as_ref());
        }
        if at.is_some() {
            say("behind", "the sites are behind each other in a circle".to_owned());
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
        // Two networks may use the same addresses; one may not.
        let node = |n: &NodeSpec| Some((n.site.clone(), n.address?));
        let fixed = (self.nodes.values().filter_map(node))
            .chain(self.sites.values().filter_map(|s| Some((s.behind.clone(), s.address?))))
            .chain(self.pods.values().filter_map(|p| Some((Some(p.node.clone()), p.address?))));
        let mut seen = BTreeSet::new();
        for (network, address) in fixed {
            if !seen.insert((network, address)) {
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

    /// Prefixes of one network may not overlap: pods of nodes that share a site, and what the public segment routes.
    /// Two sites may use the same ones, as networks that grew apart do.
    fn check_overlaps(&self, out: &mut Vec<String>) {
        let pods = self.nodes.iter().filter_map(|(n, s)| Some((&s.site, format!("nodes.{n}.pods"), s.pods?)));
        let routed = self.sites.iter().filter(|(_, s)| s.nat.kind == Nat::None);
        let routed = routed.map(|(n, s)| (&None, format!("sites.{n}.lan"), s.lan));
        let nets: Vec<(&Option<String>, String, Ipv4Net)> = pods.chain(routed).collect();
        for (i, (site, a, na)) in nets.iter().enumerate() {
            for (_, b, nb) in nets.iter().skip(i + 1).filter(|(s, ..)| s == site) {
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
    level("", value, &["name", "public", "public6", "sites", "nodes", "pods"]);
    let kinds: [(&str, &[&str]); 3] = [
        ("sites", &["lan", "nat", "address", "forward", "behind", "egress", "allow_tcp", "ipv6", "flap"]),
        ("nodes", &["site", "address", "pods", "dns", "bridge_netfilter"]),
        ("pods", &["node", "address", "namespace"]),
    ];
    for (kind, known) in kinds {
        let Some(Value::Object(map)) = value.get(kind) else { continue };
        for (name, entry) in map {
            level(&format!("{kind}.{name}."), entry, known);
            if let Some(nat) = entry.get("nat").filter(|_| kind == "sites") {
                level(&format!("{kind}.{name}.nat."), nat, &NAT_KEYS);
            }
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
        assert_eq!(spec.sites["shop"].nat, Nat::Masquerade.into());
        assert_eq!(spec.pods["web"].namespace, "default");
    }

    #[test]
    fn every_finding_is_listed_at_once() {
        let text = GOOD
            .replace("cloud: {}", "cloud: { address: 10.0.0.1 }")
            .replace("web: { node: edge-a }", "web: { node: edge-z }\n  Bad_Name: { node: cloud }")
            .replace("site: mast, pods: 10.1.2.0/24", "site: shop, pods: 10.1.1.128/25")
            .replace("to: edge-a", "to: cloud");
        let LabError::Invalid(found) = Spec::parse(&text).unwrap_err() else { panic!("not Invalid") };
        let all = found.join("\n");
        for part in [
            "nodes.cloud.address: 10.0.0.1 is in no public prefix",
            "pods.web.node: no node edge-z",
            "pods.Bad_Name: not a lower-case DNS label",
            "pods.Bad_Name.node: node cloud has no pod prefix",
            "overlap",
            "node cloud is not in this site",
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
    fn a_router_may_be_described_by_its_kind_or_in_full() {
        let site = |nat: &str| {
            let text = GOOD
                .replace("shop: { lan: 192.168.1.0/24,", &format!("shop: {{ lan: 192.168.1.0/24, {nat},"));
            Spec::parse(&text).map(|s| s.sites["shop"].clone())
        };
        assert_eq!(site("nat: full-cone").unwrap().nat, Nat::FullCone.into());
        let long = site("nat: { kind: symmetric, hairpin: true, udp_timeout_ms: 5000 }").unwrap().nat;
        assert_eq!(long, NatSpec::from(Nat::Symmetric).hairpin().udp_timeout_ms(5000));
        let bad = |nat: &str, why: &str| {
            let LabError::Invalid(found) = site(nat).unwrap_err() else { panic!("not Invalid") };
            assert!(found.iter().any(|f| f.contains(why)), "{nat}: {found:?}");
        };
        bad("nat: { kind: symmetric, hair: true }", "sites.shop.nat.hair: unknown");
        bad("nat: conical", "conical");
        bad("nat: { kind: masquerade, hairpin: true }", "masquerade has no hairpin");
        bad("behind: nobody", "no site nobody");
        bad("behind: shop", "in a circle");
        bad("flap: { up_ms: 1, down_ms: 1 }", "no time for a link");
        assert_eq!(site("egress: tcp443, ipv6: dual").unwrap().egress, crate::lab::site::Egress::Tcp443);
    }

    #[test]
    fn two_sites_may_use_the_same_prefix() {
        let text =
            GOOD.replace("mast: { lan: 198.51.100.128/25, nat: none }", "mast: { lan: 192.168.1.0/24 }");
        Spec::parse(&text.replace("10.1.2.0/24", "10.1.1.0/24")).unwrap();
    }

    #[test]
    fn private_prefixes_are_not_routed_in_public() {
        let text = GOOD.replace("198.51.100.128/25", "192.168.7.0/24");
        assert!(Spec::parse(&text).is_err());
    }
}
