//! What is concluded from what a cluster has. Pure.

use std::collections::BTreeMap;

/// Names of the checks, by which one is told to be ignored.
pub const CHECKS: [&str; 10] = [
    "second-release",
    "edgemesh",
    "kubeedge",
    "istio-sidecar",
    "istio-ambient",
    "cilium",
    "nodelocaldns",
    "kernel",
    "pod-security",
    "rights",
];

/// The least kernel whose nftables can do what the proxy's rules say (NAT in tables of both families).
const KERNEL: (u32, u32) = (5, 2);
/// From here on distributions may have it by backport.
const KERNEL_BACKPORTED: (u32, u32) = (4, 18);
/// ConfigMaps that are looked at: namespace and name.
pub(super) const SETTINGS: [(&str, &str); 4] =
    [CILIUM, NODE_LOCAL_DNS, NODE_LOCAL_DNS_OF_KUBESPRAY, EDGEMESH];
const CILIUM: (&str, &str) = ("kube-system", "cilium-config");
const NODE_LOCAL_DNS: (&str, &str) = ("kube-system", "node-local-dns");
const NODE_LOCAL_DNS_OF_KUBESPRAY: (&str, &str) = ("kube-system", "nodelocaldns");
const EDGEMESH: (&str, &str) = ("kubeedge", "edgemesh-agent-cfg");
/// Whether what is in a ConfigMap can refuse an installation.
pub(super) fn refuses_by(namespace: &str, name: &str) -> bool {
    (namespace, name) == CILIUM
}

/// By which the chart knows edge nodes, unless a value says otherwise; KubeEdge sets it.
pub(super) const EDGE: &str = "node-role.kubernetes.io/edge";
/// Where the proxies answer DNS, unless a value says otherwise.
const OWN_DNS: &str = "169.254.96.16";
/// Names in a message; the rest is a number.
const NAMED: usize = 5;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Nothing is in the way.
    Ok,
    /// Something will work less well.
    Warn,
    /// The mesh must not be installed.
    Refuse,
}

/// What a check says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Name of the check.
    pub check: &'static str,
    /// How it ended.
    pub level: Level,
    /// Why, and what to do.
    pub text: String,
}

/// Data of a ConfigMap.
pub(super) type Settings = BTreeMap<String, String>;

/// What is known of a cluster.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) namespace: String,
    pub(super) release: String,
    pub(super) nodes: Vec<NodeFacts>,
    pub(super) workloads: Vec<Object>,
    pub(super) namespaces: Vec<Object>,
    pub(super) webhooks: Vec<Object>,
    /// What is in those of [`SETTINGS`] that are there.
    pub(super) settings: BTreeMap<(&'static str, &'static str), Settings>,
    /// How many addresses the values name for nodes that do not reach addresses of services; none = that is not known.
    pub(super) controller_addresses: Option<usize>,
    /// What could not be read for lack of rights.
    pub(super) forbidden: Vec<String>,
    /// The same of what only hints come of: an older chart does not give these rights.
    pub(super) unseen: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct NodeFacts {
    pub(super) name: String,
    pub(super) os: String,
    pub(super) kernel: String,
    pub(super) kubelet: String,
    /// It has [`EDGE`].
    pub(super) edge: bool,
}

/// An object without what it is for.
#[derive(Debug, Clone, Default)]
pub(super) struct Object {
    pub(super) kind: &'static str,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

impl Object {
    fn label(&self, key: &str) -> &str {
        self.labels.get(key).map_or("", String::as_str)
    }

    fn annotation(&self, key: &str) -> &str {
        self.annotations.get(key).map_or("", String::as_str)
    }

    fn path(&self) -> String {
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl Facts {
    pub(super) fn new(namespace: &str, release: &str) -> Self {
        Self { namespace: namespace.to_owned(), release: release.to_owned(), ..Self::default() }
    }
}

type Answer = (Level, String);

/// All checks. One that is ignored says what it would have said, as a warning.
pub(super) fn all(facts: &Facts, ignore: &[String]) -> Vec<Verdict> {
    let answers: [Answer; CHECKS.len()] = [
        second_release(facts),
        edgemesh(facts),
        kubeedge(facts),
        istio_sidecar(facts),
        istio_ambient(facts),
        cilium(facts),
        node_local_dns(facts),
        kernel(facts),
        pod_security(facts),
        rights(facts),
    ];
    let verdict = |(check, (level, text)): (&'static str, Answer)| {
        if level == Level::Refuse && ignore.iter().any(|i| i == check) {
            return Verdict { check, level: Level::Warn, text: format!("(ignored) {text}") };
        }
        Verdict { check, level, text }
    };
    CHECKS.into_iter().zip(answers).map(verdict).collect()
}

fn fine(text: &str) -> Answer {
    (Level::Ok, text.to_owned())
}

fn second_release(facts: &Facts) -> Answer {
    let ours = |o: &&Object| o.label("app.kubernetes.io/part-of") == "selvage";
    let release = |o: &Object| match o.annotation("meta.helm.sh/release-name") {
        "" => (o.label("app.kubernetes.io/instance").to_owned(), o.namespace.clone()),
        name => (name.to_owned(), o.annotation("meta.helm.sh/release-namespace").to_owned()),
    };
    let mine = (facts.release.clone(), facts.namespace.clone());
    match facts.workloads.iter().filter(ours).find(|o| release(o) != mine) {
        None => fine("no other mesh in this cluster"),
        Some(other) => {
            let (name, namespace) = release(other);
            let text = format!(
                "this cluster has a mesh already: release {name:?} in namespace {namespace:?} ({}). A cluster has one: \
                 upgrade that or remove it first.",
                other.path()
            );
            (Level::Refuse, text)
        }
    }
}

fn edgemesh(facts: &Facts) -> Answer {
    let is = |o: &&Object| {
        ["kubeedge", "k8s-app", "app"].iter().any(|key| o.label(key) == "edgemesh-agent")
            || (o.kind == "DaemonSet" && o.name == "edgemesh-agent")
    };
    match facts.workloads.iter().find(is) {
        None => edgemesh_leftovers(facts),
        Some(agent) => {
            let text = format!(
                "EdgeMesh runs here ({}): it holds 169.254.96.16:53 and the same services. docs/migration.md moves its \
                 settings over; remove it first.",
                agent.path()
            );
            (Level::Refuse, text)
        }
    }
}

/// Nothing of it is in the way, but it does nothing any more either.
fn edgemesh_leftovers(facts: &Facts) -> Answer {
    let parts = ["edgemesh-server", "edgemesh-gateway"];
    let workloads = facts.workloads.iter().filter(|o| parts.contains(&o.name.as_str())).map(Object::path);
    let config =
        facts.settings.contains_key(&EDGEMESH).then(|| format!("ConfigMap {}/{}", EDGEMESH.0, EDGEMESH.1));
    let left: Vec<String> = workloads.chain(config).collect();
    if left.is_empty() {
        return fine("no EdgeMesh");
    }
    let text = format!(
        "left of an EdgeMesh: {}. `helm uninstall edgemesh -n kubeedge`, or delete them; docs/migration.md reads their \
         settings first. On nodes whose agent was killed: `ip link delete edgemesh0`, and `iptables -t nat -S | grep \
         EDGE-MESH` shows rules that go with a restart of the node.",
        left.join(", ")
    );
    (Level::Warn, text)
}

/// Its edge nodes have no kube-proxy and no way to the cluster's addresses before the mesh gives them one.
fn kubeedge(facts: &Facts) -> Answer {
    let nodes: Vec<&NodeFacts> = facts.nodes.iter().filter(|n| n.kubelet.contains("kubeedge")).collect();
    if nodes.is_empty() {
        return fine("no nodes of KubeEdge");
    }
    let names = |nodes: &[&NodeFacts]| -> String {
        named(&nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), "nodes")
    };
    let plain: Vec<&NodeFacts> = nodes.iter().copied().filter(|n| !n.edge).collect();
    if !plain.is_empty() {
        let text = format!(
            "nodes of KubeEdge without the label {EDGE} ({}) get the pods of cloud nodes, which look for the controller at \
             an address of a service: kubectl label node NAME {EDGE}=",
            names(&plain)
        );
        return (Level::Warn, text);
    }
    if facts.controller_addresses == Some(0) {
        let text = format!(
            "nodes of KubeEdge ({}) do not reach addresses of services before they have joined: set \
             controller.externalAddresses to where they reach the controller (docs/install.md)",
            names(&nodes)
        );
        return (Level::Warn, text);
    }
    (Level::Ok, format!("nodes of KubeEdge get pods of the edge ({})", names(&nodes)))
}

/// It answers pods from a place that is not captured, so that what only the mesh knows has to be forwarded to us.
fn node_local_dns(facts: &Facts) -> Answer {
    let is = |o: &&Object| {
        o.kind == "DaemonSet"
            && (o.label("k8s-app") == "node-local-dns"
                || o.name == NODE_LOCAL_DNS.1
                || o.name == NODE_LOCAL_DNS_OF_KUBESPRAY.1)
    };
    let Some(set) = facts.workloads.iter().find(is) else { return fine("no NodeLocal DNSCache") };
    let corefiles = [NODE_LOCAL_DNS, NODE_LOCAL_DNS_OF_KUBESPRAY];
    let mut corefiles =
        corefiles.iter().filter_map(|name| facts.settings.get(name)).flat_map(BTreeMap::values);
    if corefiles.any(|text| text.contains(OWN_DNS)) {
        return fine("NodeLocal DNSCache asks the mesh");
    }
    let text = format!(
        "NodeLocal DNSCache runs here ({}): names of services work, names of single pods of other sites and of \
         ServiceEntries do not until its Corefile has `forward . {OWN_DNS}` for cluster.local (docs/install.md).",
        set.path()
    );
    (Level::Warn, text)
}

fn istio_sidecar(facts: &Facts) -> Answer {
    let injector = facts
        .webhooks
        .iter()
        .find(|w| w.label("app") == "sidecar-injector" || w.name.starts_with("istio-sidecar-injector"));
    let injected = |n: &&Object| {
        n.label("istio-injection") == "enabled"
            || (!n.label("istio.io/rev").is_empty() && n.label("istio-injection") != "disabled")
    };
    let spaces: Vec<&str> = facts.namespaces.iter().filter(injected).map(|n| n.name.as_str()).collect();
    match (injector, spaces.is_empty()) {
        (None, _) => fine("no injection of sidecars"),
        (Some(hook), true) => {
            let text = format!("{} exists, but no namespace asks for sidecars", hook.name);
            (Level::Warn, text)
        }
        (Some(hook), false) => {
            let text = format!(
                "Istio injects sidecars ({}) into {}: their calls would be steered twice. Remove the label \
                 istio-injection there (and restart the pods), or keep Istio.",
                hook.name,
                named(&spaces, "namespaces")
            );
            (Level::Refuse, text)
        }
    }
}

fn istio_ambient(facts: &Facts) -> Answer {
    let is = |o: &&Object| o.kind == "DaemonSet" && (o.label("app") == "ztunnel" || o.name == "ztunnel");
    match facts.workloads.iter().find(is) {
        None => fine("no ambient mesh"),
        Some(set) => {
            let text = format!(
                "Istio's ambient mesh runs here ({}): both would redirect the calls of pods. Remove it first.",
                set.path()
            );
            (Level::Refuse, text)
        }
    }
}

/// Cilium can choose the endpoint of a service when a socket connects: then no packet ever goes to the service's address.
fn cilium(facts: &Facts) -> Answer {
    let Some(settings) = facts.settings.get(&CILIUM) else { return fine("no Cilium") };
    let is = |key: &str, value: &str| settings.get(key).is_some_and(|v| v == value);
    let replaces = is("kube-proxy-replacement", "true") || is("kube-proxy-replacement", "strict");
    let sockets = replaces || is("bpf-lb-sock", "true");
    if !sockets || is("bpf-lb-sock-hostns-only", "true") {
        return fine("Cilium leaves the addresses of services to be seen");
    }
    let text = "Cilium translates addresses of services inside pods, so the mesh would see no call. Set \
                socketLB.hostNamespaceOnly=true in Cilium's values (bpf-lb-sock-hostns-only) and restart its agents.";
    (Level::Refuse, text.to_owned())
}

fn kernel(facts: &Facts) -> Answer {
    let version = |node: &NodeFacts| -> Option<(u32, u32)> {
        let mut numbers = node.kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    let linux = || facts.nodes.iter().filter(|n| n.os.is_empty() || n.os == "linux");
    let below = |least: (u32, u32)| -> Vec<&str> {
        let old = linux().filter(|n| version(n).is_some_and(|v| v < least));
        old.map(|n| n.name.as_str()).collect()
    };
    let (too_old, doubtful) = (below(KERNEL_BACKPORTED), below(KERNEL));
    let count = linux().count();
    if !too_old.is_empty() && too_old.len() == count {
        let text = format!(
            "no node has a kernel of at least {}.{} ({}): nftables there cannot redirect. Upgrade them, or set \
             proxy.capture.enabled=false and let programs use the node's HTTP or SOCKS5 proxy.",
            KERNEL.0,
            KERNEL.1,
            named(&too_old, "nodes")
        );
        return (Level::Refuse, text);
    }
    if doubtful.is_empty() {
        return fine(&format!("{count} nodes have a kernel of at least {}.{}", KERNEL.0, KERNEL.1));
    }
    let text = format!(
        "kernels older than {}.{} may not redirect ({}): programs there use the node's HTTP or SOCKS5 proxy",
        KERNEL.0,
        KERNEL.1,
        named(&doubtful, "nodes")
    );
    (Level::Warn, text)
}

fn pod_security(facts: &Facts) -> Answer {
    let own = facts.namespaces.iter().find(|n| n.name == facts.namespace);
    match own.map_or("", |n| n.label("pod-security.kubernetes.io/enforce")) {
        level @ ("baseline" | "restricted") => {
            let text = format!(
                "namespace {0} enforces pod security level {level}, which refuses the network of the host: kubectl \
                 label namespace {0} pod-security.kubernetes.io/enforce=privileged --overwrite",
                facts.namespace
            );
            (Level::Refuse, text)
        }
        _ => fine("the namespace admits pods in the network of the host"),
    }
}

fn rights(facts: &Facts) -> Answer {
    if facts.forbidden.is_empty() && facts.unseen.is_empty() {
        return fine("everything could be read");
    }
    if facts.forbidden.is_empty() {
        return (Level::Warn, format!("missing rights for hints: {}", facts.unseen.join(", ")));
    }
    let text = format!(
        "missing rights: {}. These checks saw nothing; give the service account mesh-preflight its ClusterRole.",
        facts.forbidden.join(", ")
    );
    (Level::Refuse, text)
}

fn named(names: &[&str], what: &str) -> String {
    let first = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        n if n > NAMED => format!("{first} and {} more {what}", n - NAMED),
        _ => first,
    }
}

#[cfg(test)]
mod tests;
