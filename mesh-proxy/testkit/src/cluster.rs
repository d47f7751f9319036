//! A real cluster in a closed world: a control plane with scheduler, and nodes with containerd, the kubelet and kube-proxy,
//! each in a network namespace and control groups of its own. Pods are real containers. It decides how nodes are connected
//! and started, and what is left of them afterwards: nothing.

mod cgroup;
pub mod cli;
mod config;
mod dns;
mod images;
mod node;
mod run;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::Ipv4Net;

pub use images::{TAG, program as program_image, program_at as program_image_at, stand_ins};

use crate::{
    image::ImageError,
    kube::{KubeCluster, KubeError, KubeOptions, Wrap, eventually},
    lab::{LabError, Nat, Proc, Spec, World, state},
};

/// Commands that must be there, and the Debian packages that bring them.
const TOOLS: [(&str, &str); 7] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("gcc", "gcc"),
];
/// Where Debian has the plugins of the pod network.
const CNI: &str = "/usr/lib/cni/bridge";

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// This machine or user cannot run one; tests skip.
    #[error("no cluster here: {0}")]
    Unable(String),
    /// A file could not be used.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// "read", "write" and the like.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refused.
    #[error("{what}: {errno}")]
    System {
        /// What was attempted.
        what: String,
        /// Why.
        errno: nix::errno::Errno,
    },
    /// A system tool complained.
    #[error("{tool}: {reason}")]
    Tool {
        /// Which.
        tool: String,
        /// What it said.
        reason: String,
    },
    /// A node is not what it should be.
    #[error("node {node}: {reason}")]
    Node {
        /// Which.
        node: String,
        /// Why.
        reason: String,
    },
    /// One of this project's programs is missing.
    #[error("programs of this project: {0}")]
    Programs(String),
    /// An image could not be made.
    #[error("making an image: {0}")]
    Image(ImageError),
    /// The world.
    #[error("the world: {}", .0.full())]
    World(LabError),
    /// The control plane.
    #[error(transparent)]
    Kube(KubeError),
    /// Helm ended with an error.
    #[error("helm {args}: {stderr}")]
    Helm {
        /// The arguments.
        args: String,
        /// What it said.
        stderr: String,
    },
}

impl ClusterError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    fn system(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let what = what.into();
        move |errno| Self::System { what, errno }
    }
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of its world.
    pub name: String,
    /// Nodes; the control plane runs on the first one too.
    pub nodes: Vec<NodeOptions>,
    /// Name server of pods: by default CoreDNS at its usual address, which then runs in the cluster.
    pub dns: Ipv4Addr,
    /// kube-proxy's mode: `nftables` or `iptables`.
    pub proxy_mode: String,
    /// Whether pods of different nodes reach each other without a mesh, as in a usual cluster.
    pub pod_routes: bool,
    /// Archives that every node gets before it starts.
    pub images: Vec<PathBuf>,
}

/// A node to be.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Its name.
    pub name: String,
    /// Labels that its kubelet registers it with.
    pub labels: Vec<(String, String)>,
}

impl Options {
    /// A cluster with these nodes and no images but the pause image.
    #[must_use]
    pub fn with_nodes(nodes: &[&str]) -> Self {
        let node = |name: &&str| NodeOptions {
            name: (*name).to_owned(),
            labels: vec![("topology.kubernetes.io/zone".to_owned(), (*name).to_owned())],
        };
        Self {
            name: "cluster".to_owned(),
            nodes: nodes.iter().map(node).collect(),
            dns: dns::ADDRESS,
            proxy_mode: "nftables".to_owned(),
            pod_routes: true,
            images: Vec::new(),
        }
    }

    /// The same with images of this project's programs, tagged [`TAG`].
    ///
    /// # Errors
    /// When one cannot be built or packed.
    pub fn programs(mut self, names: &[&str]) -> Result<Self, ClusterError> {
        for name in names {
            self.images.push(program_image(name, TAG)?);
        }
        Ok(self)
    }
}

/// A running cluster; gone when dropped. Fields are dropped in this order: clients before servers, the control groups when
/// no process is left in them.
pub struct Cluster {
    nodes: Vec<Node>,
    kube: KubeCluster,
    world: Arc<World>,
    _groups: Groups,
}

struct Node {
    name: String,
    group: String,
    dir: PathBuf,
    plan: PathBuf,
    process: Option<Proc>,
}

struct Groups(Vec<String>);

impl Drop for Groups {
    fn drop(&mut self) {
        for group in &self.0 {
            // The last process may still be on its way out; what stays then is the next start's business.
            let _later = eventually(Duration::from_secs(5), Duration::from_millis(20), || {
                if cgroup::remove(group) { Ok(()) } else { Err(()) }
            });
        }
    }
}

/// Why this machine cannot run a cluster, if it cannot.
///
/// # Errors
/// The reason, for people.
pub fn possible() -> Result<(), ClusterError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(ClusterError::Unable("containers need root".to_owned()));
    }
    let folders = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let there = |tool: &str| folders.iter().any(|f| Path::new(f).join(tool).exists());
    let mut missing: Vec<&str> = TOOLS.iter().filter(|(t, _)| !there(t)).map(|(_, p)| *p).collect();
    if !Path::new(CNI).exists() {
        missing.push("containernetworking-plugins");
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(ClusterError::Unable(format!("missing: apt-get install -y {}", missing.join(" "))))
}

/// Removes the control groups of clusters that were killed; the kernel and the lab removed the rest. Every start does it.
pub fn remove_leftovers() {
    cgroup::janitor();
}

impl Cluster {
    /// Brings a cluster up; returns when all of its nodes are ready.
    ///
    /// # Errors
    /// [`ClusterError::Unable`] where there can be none; otherwise what failed.
    pub fn up(options: &Options) -> Result<Self, ClusterError> {
        possible()?;
        let pause = images::pause()?;
        remove_leftovers();
        let world = Arc::new(World::up(&spec(options)).map_err(ClusterError::World)?);
        let groups = options.nodes.iter().map(|n| cgroup::name(world.dir(), &n.name)).collect();
        if options.pod_routes {
            routes(&world, options)?;
        }
        let kube = control_plane(&world, options)?;
        let mut cluster = Self { nodes: Vec::new(), kube, world, _groups: Groups(groups) };
        let mut images = vec![pause];
        if options.dns == dns::ADDRESS {
            images.push(images::coredns(cluster.kube.programs())?);
        }
        images.extend(options.images.iter().cloned());
        for (i, node) in options.nodes.iter().enumerate() {
            cluster.prepare(options, i, node, &images)?;
        }
        for node in &options.nodes {
            cluster.boot(&node.name)?;
        }
        for (i, node) in options.nodes.iter().enumerate() {
            cluster.wait_ready(&node.name)?;
            let pods = pods_of(i).to_string();
            let patch = serde_json::json!({ "spec": { "podCIDR": pods, "podCIDRs": [pods] } }).to_string();
            cluster.kubectl(&["patch", "node", &node.name, "-p", &patch])?;
        }
        if options.dns == dns::ADDRESS {
            dns::install(&cluster)?;
        }
        Ok(cluster)
    }

    fn prepare(
        &mut self,
        options: &Options,
        number: usize,
        node: &NodeOptions,
        images: &[PathBuf],
    ) -> Result<(), ClusterError> {
        let dir = self.world.folder(&node.name).map_err(ClusterError::World)?;
        let group = cgroup::name(self.world.dir(), &node.name);
        let user = format!("system:node:{}", node.name);
        let client = |user: &str, group| self.kube.client_kubeconfig(user, group).map_err(ClusterError::Kube);
        let plan = node::Plan {
            name: node.name.clone(),
            group: group.clone(),
            programs: self.kube.programs().to_owned(),
            address: self.world.node(&node.name).map_err(ClusterError::World)?.address(),
            pods: pods_of(number),
            all_pods: ALL_PODS,
            dns: options.dns,
            proxy_mode: options.proxy_mode.clone(),
            ca: self.kube.ca_file(),
            kubeconfig: client(&user, Some("system:nodes"))?,
            proxy_kubeconfig: client("system:kube-proxy", None)?,
            labels: node.labels.clone(),
            images: images.to_vec(),
            dir: dir.clone(),
        };
        let path = dir.join("plan.json");
        state::write_json(&path, &plan).map_err(ClusterError::World)?;
        self.nodes.push(Node { name: node.name.clone(), group, dir, plan: path, process: None });
        Ok(())
    }
}

/// The prefix of all pods.
const ALL_PODS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 41, 0, 0), 16);

/// The prefix of a node's pods.
fn pods_of(number: usize) -> Ipv4Net {
    let third = u8::try_from(number % 256).unwrap_or(0);
    Ipv4Net::new_assert(Ipv4Addr::new(10, 41, third, 0), 24)
}

/// All nodes in one network, as in a data centre; netfilter sees what crosses a bridge, as kubeadm asks.
fn spec(options: &Options) -> Spec {
    let lan = Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 64), 26);
    let mut spec = Spec::named(&options.name).site("lan", lan, Nat::None);
    for node in &options.nodes {
        spec = spec.node(&node.name, Some("lan"), None);
        if let Some(made) = spec.nodes.get_mut(&node.name) {
            made.bridge_netfilter = true;
        }
    }
    spec
}

/// What a router of the data centre knows: which node has which pods.
fn routes(world: &World, options: &Options) -> Result<(), ClusterError> {
    for here in &options.nodes {
        for (i, there) in options.nodes.iter().enumerate().filter(|(_, n)| n.name != here.name) {
            let gateway = world.node(&there.name).map_err(ClusterError::World)?.address().to_string();
            let pods = pods_of(i).to_string();
            world
                .run_in(&here.name, "ip", &["route", "add", &pods, "via", &gateway], "")
                .map_err(ClusterError::World)?;
        }
    }
    Ok(())
}

fn control_plane(world: &Arc<World>, options: &Options) -> Result<KubeCluster, ClusterError> {
    let first = options.nodes.first().map(|n| n.name.clone()).unwrap_or_default();
    let mut kube = KubeOptions::new(world.folder("kube").map_err(ClusterError::World)?);
    kube.address = world.node(&first).map_err(ClusterError::World)?.address();
    kube.port = 6443;
    kube.with_nodes = true;
    let inside = Arc::clone(world);
    kube.wrap = Wrap::with(move |command| match inside.node(&first) {
        Ok(node) => node.wrap(&command, None),
        // There is such a node: it was asked for its address.
        Err(_) => command,
    });
    KubeCluster::start_with(kube).map_err(ClusterError::Kube)
}
