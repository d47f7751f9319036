//! Destinations outside the mesh, made to look like clusters, so that one path serves both.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_core::{
    Cluster, ClusterEndpoint, ClusterKey, EndpointEntry, Locality, PortEntry, Protocol, WorkloadEntry,
};

/// Most addresses that are remembered; more push out the ones not used for longest.
const MAX: usize = 1024;
/// How long an address is remembered after its last use.
const KEEP: Duration = Duration::from_secs(300);
/// How long a resolved external name is used.
const NAME_TTL: Duration = Duration::from_secs(30);

/// What Istio calls traffic that leaves the mesh.
pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";

/// Clusters of one worker that no table knows.
#[derive(Default)]
pub(crate) struct Externals {
    addresses: RefCell<HashMap<SocketAddr, Known>>,
    names: RefCell<HashMap<u64, (Instant, Arc<Cluster>)>>,
}

struct Known {
    cluster: Arc<Cluster>,
    used: Cell<Instant>,
}

impl Externals {
    /// The cluster of one address outside the mesh.
    pub(crate) fn passthrough(&self, addr: SocketAddr) -> Arc<Cluster> {
        let now = Instant::now();
        let mut all = self.addresses.borrow_mut();
        if let Some(known) = all.get(&addr) {
            known.used.set(now);
            return Arc::clone(&known.cluster);
        }
        if all.len() >= MAX
            && let Some(oldest) = all.iter().min_by_key(|(_, k)| k.used.get()).map(|(a, _)| *a)
        {
            all.remove(&oldest);
        }
        let cluster = Arc::new(synthetic(addr));
        all.insert(addr, Known { cluster: Arc::clone(&cluster), used: Cell::new(now) });
        cluster
    }

    /// The cluster of an ExternalName service with the addresses that its name has now.
    pub(crate) async fn resolved(&self, cluster: &Arc<Cluster>, name: &str) -> std::io::Result<Arc<Cluster>> {
        let now = Instant::now();
        if let Some((at, known)) = self.names.borrow().get(&cluster.id)
            && now.saturating_duration_since(*at) < NAME_TTL
            && known.policy == cluster.policy
        {
            return Ok(Arc::clone(known));
        }
        let found: Vec<SocketAddr> = tokio::net::lookup_host((name, cluster.port.number)).await?.collect();
        let mut new = Cluster {
            key: cluster.key.clone(),
            id: cluster.id,
            service_name: Arc::clone(&cluster.service_name),
            service_namespace: Arc::clone(&cluster.service_namespace),
            port: cluster.port.clone(),
            endpoints: found.into_iter().map(outside).collect(),
            policy: cluster.policy.clone(),
            external_name: None,
            equal_weights: true,
            total_weight: 0,
        };
        new.total_weight = new.endpoints.len() as u64;
        let new = Arc::new(new);
        let mut names = self.names.borrow_mut();
        if names.len() >= MAX {
            names.clear();
        }
        names.insert(cluster.id, (now, Arc::clone(&new)));
        Ok(new)
    }

    /// Whether the cluster is one of ours and still remembered.
    pub(crate) fn knows(&self, cluster: &Arc<Cluster>) -> bool {
        cluster.endpoints.first().is_some_and(|e| self.addresses.borrow().contains_key(&e.addr))
    }

    /// Forgets what has not been used for long.
    pub(crate) fn sweep(&self, now: Instant) {
        self.addresses.borrow_mut().retain(|_, k| now.saturating_duration_since(k.used.get()) < KEEP);
        self.names.borrow_mut().retain(|_, (at, _)| now.saturating_duration_since(*at) < NAME_TTL);
    }
}

fn synthetic(addr: SocketAddr) -> Cluster {
    let none: Arc<str> = "".into();
    let key = ClusterKey {
        host: PASSTHROUGH.into(),
        subset: Arc::clone(&none),
        port: addr.port(),
        // Not a policy, but what tells two addresses apart.
        policy: addr.to_string().into(),
    };
    Cluster {
        id: key.id(),
        key,
        service_name: PASSTHROUGH.into(),
        service_namespace: "unknown".into(),
        port: PortEntry { number: addr.port(), name: none, protocol: Protocol::Detect },
        endpoints: [outside(addr)].into(),
        policy: Arc::default(),
        external_name: None,
        equal_weights: true,
        total_weight: 1,
    }
}

fn outside(addr: SocketAddr) -> ClusterEndpoint {
    let workload = WorkloadEntry {
        address: addr.ip(),
        node: "".into(),
        namespace: "unknown".into(),
        name: "unknown".into(),
        owner: "unknown".into(),
        service_account: "".into(),
        labels: BTreeMap::new(),
        host_network: false,
    };
    let endpoint = EndpointEntry {
        address: addr.ip(),
        ports: [(addr.port(), addr.port())].into(),
        node: None,
        workload: Arc::new(workload),
        ready: true,
        terminating: false,
        hostname: None,
        locality: Arc::new(Locality::default()),
        weight: 1,
    };
    ClusterEndpoint { addr, weight: 1, endpoint: Arc::new(endpoint) }
}
