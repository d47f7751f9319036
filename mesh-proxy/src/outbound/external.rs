//! Destinations whose endpoints no table lists: addresses and names outside the mesh. They are made to look like
//! clusters, so that one path serves all.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_core::{Cluster, ClusterEndpoint, NamedEndpoint, Source};

use super::worker::WorkerState;

/// Most addresses that are remembered; more push out the ones not used for longest.
const MAX: usize = 1024;
/// How long an address is remembered after its last use.
const KEEP: Duration = Duration::from_secs(300);
/// How long the addresses of a name are used when nobody answers any more.
const STALE: Duration = Duration::from_secs(3600);
/// How long nobody is asked again after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Most endpoints that names give one cluster.
const MAX_ENDPOINTS: usize = 256;

/// What Istio calls traffic that leaves the mesh.
pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";
/// What Istio calls traffic that may not.
pub(crate) const BLACKHOLE: &str = "BlackHoleCluster";

/// What a call asks for, where the cluster alone does not say.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asked<'a> {
    /// The address that was called.
    pub(crate) addr: Option<SocketAddr>,
    /// The host that was asked for.
    pub(crate) host: &'a str,
}

/// Clusters of one worker that no table knows.
#[derive(Default)]
pub(crate) struct Externals {
    addresses: RefCell<HashMap<(u64, SocketAddr), Known>>,
    names: RefCell<HashMap<u64, Named>>,
}

/// A cluster of one address.
struct Known {
    of: Option<Arc<Cluster>>,
    cluster: Arc<Cluster>,
    used: Cell<Instant>,
}

/// A cluster of the addresses that names have.
struct Named {
    of: Arc<Cluster>,
    cluster: Arc<Cluster>,
    asked: Instant,
    until: Instant,
    used: Cell<Instant>,
    /// Somebody asks already.
    asking: Cell<bool>,
}

impl Externals {
    /// The cluster of one address outside the mesh.
    pub(crate) fn passthrough(&self, addr: SocketAddr) -> Arc<Cluster> {
        self.address(None, addr)
    }

    /// What refused calls go to: nowhere.
    pub(crate) fn blackhole(&self) -> Arc<Cluster> {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut all = self.addresses.borrow_mut();
        let known = all.entry((1, nowhere)).or_insert_with(|| Known {
            of: None,
            cluster: Arc::new(Cluster::unknown(BLACKHOLE, None)),
            used: Cell::new(Instant::now()),
        });
        known.used.set(Instant::now());
        Arc::clone(&known.cluster)
    }

    fn address(&self, of: Option<&Arc<Cluster>>, addr: SocketAddr) -> Arc<Cluster> {
        let now = Instant::now();
        let key = (of.map_or(0, |c| c.id), addr);
        let mut all = self.addresses.borrow_mut();
        let same = |known: &Known| match (&known.of, of) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        if let Some(known) = all.get(&key).filter(|k| same(k)) {
            known.used.set(now);
            return Arc::clone(&known.cluster);
        }
        if all.len() >= MAX
            && let Some(oldest) = all.iter().min_by_key(|(_, k)| k.used.get()).map(|(a, _)| *a)
        {
            all.remove(&oldest);
        }
        let cluster = Arc::new(match of {
            None => Cluster::unknown(PASSTHROUGH, Some(addr)),
            Some(c) => c.with_endpoints([ClusterEndpoint::outside(addr)].into(), addr.to_string().as_bytes()),
        });
        all.insert(key, Known { of: of.cloned(), cluster: Arc::clone(&cluster), used: Cell::new(now) });
        cluster
    }

    /// Whether the cluster is one of ours and still remembered.
    pub(crate) fn knows(&self, cluster: &Arc<Cluster>) -> bool {
        let names = self.names.borrow();
        names.get(&cluster.id).is_some_and(|n| Arc::ptr_eq(&n.cluster, cluster))
            || self.addresses.borrow().values().any(|k| Arc::ptr_eq(&k.cluster, cluster))
    }

    /// Forgets what has not been used for long.
    pub(crate) fn sweep(&self, now: Instant) {
        let used = |at: &Cell<Instant>| now.saturating_duration_since(at.get()) < KEEP;
        self.addresses.borrow_mut().retain(|_, k| used(&k.used));
        self.names.borrow_mut().retain(|_, n| used(&n.used));
    }
}

/// The cluster with endpoints to connect to.
pub(crate) async fn resolve(
    worker: &Rc<WorkerState>,
    cluster: &Arc<Cluster>,
    asked: Asked<'_>,
) -> io::Result<Arc<Cluster>> {
    match &cluster.source {
        Source::List => Ok(Arc::clone(cluster)),
        Source::Original => match asked.addr {
            Some(addr) => Ok(worker.externals.address(Some(cluster), addr)),
            None => Err(io::Error::other("the call names no address")),
        },
        Source::Names { names, first } => by_names(worker, cluster, names, *first, cluster.id).await,
        Source::Asked => {
            let host = asked.host.to_ascii_lowercase();
            let host = host.rsplit_once(':').filter(|(h, _)| !h.contains(':')).map_or(&*host, |(h, _)| h);
            let covered = |suffix: &str| host.strip_suffix(suffix).is_some_and(|rest| !rest.is_empty());
            if !cluster.key.host.strip_prefix('*').is_some_and(covered) {
                return Err(io::Error::other("the call names no host that the entry covers"));
            }
            let name: Arc<str> = host.into();
            let salted = cluster.with_endpoints(Box::default(), name.as_bytes());
            let names = [NamedEndpoint::outside(&name)];
            by_names(worker, cluster, &names, false, salted.id).await
        }
    }
}

/// The addresses of names, asked anew when they no longer hold. While somebody asks, and when nobody answers, the old
/// ones are used.
async fn by_names(
    worker: &Rc<WorkerState>,
    cluster: &Arc<Cluster>,
    names: &[NamedEndpoint],
    first: bool,
    id: u64,
) -> io::Result<Arc<Cluster>> {
    let now = Instant::now();
    let old = {
        let all = worker.externals.names.borrow();
        all.get(&id).filter(|n| Arc::ptr_eq(&n.of, cluster)).map(|n| {
            n.used.set(now);
            let usable = !n.cluster.endpoints.is_empty() && now.saturating_duration_since(n.asked) < STALE;
            let due = now >= n.until && !n.asking.replace(now >= n.until);
            (usable.then(|| Arc::clone(&n.cluster)), due)
        })
    };
    match old {
        Some((Some(usable), false)) => Ok(usable),
        Some((Some(usable), true)) => {
            let (worker, cluster, names) = (Rc::clone(worker), Arc::clone(cluster), names.to_vec());
            tokio::task::spawn_local(async move {
                let _kept_old = ask(&worker, &cluster, &names, first, id).await;
            });
            Ok(usable)
        }
        _ => ask(worker, cluster, names, first, id).await,
    }
}

async fn ask(
    worker: &Rc<WorkerState>,
    cluster: &Arc<Cluster>,
    names: &[NamedEndpoint],
    first: bool,
    id: u64,
) -> io::Result<Arc<Cluster>> {
    let (mut endpoints, mut holds, mut failure) = (cluster.endpoints.to_vec(), STALE, None);
    for name in names {
        let found = match worker.shared.names.lookup(&name.name).await {
            Ok(found) => found,
            Err(e) => {
                tracing::debug!(error = %e, name = %name.name, "name not resolved");
                failure = Some(e);
                continue;
            }
        };
        holds = holds.min(found.holds);
        let port = name.entry.target_port(cluster.port.number).unwrap_or(cluster.port.number);
        let one_of_each =
            [found.addresses.iter().find(|a| a.is_ipv4()), found.addresses.iter().find(|a| a.is_ipv6())];
        let used: Vec<IpAddr> = match first {
            true => one_of_each.into_iter().flatten().copied().collect(),
            false => found.addresses,
        };
        endpoints
            .extend(used.into_iter().map(|a| ClusterEndpoint::at(SocketAddr::new(a, port), &name.entry)));
    }
    endpoints.truncate(MAX_ENDPOINTS);
    endpoints.sort_by_key(|e| e.addr);
    endpoints.dedup_by_key(|e| e.addr);
    let now = Instant::now();
    let mut all = worker.externals.names.borrow_mut();
    if let Some(e) = failure.filter(|_| endpoints.len() == cluster.endpoints.len() && endpoints.is_empty()) {
        if let Some(n) = all.get_mut(&id) {
            n.asking.set(false);
            n.until = now + AFTER_FAILURE;
        }
        return Err(e);
    }
    let salt = if id == cluster.id {
        Vec::new()
    } else {
        names.first().map(|n| n.name.as_bytes().to_vec()).unwrap_or_default()
    };
    let new = cluster.with_endpoints(endpoints.into(), &salt);
    // An equal cluster keeps its balancer and connections.
    let kept = all.get(&id).map(|n| Arc::clone(&n.cluster)).filter(|c| **c == new);
    let new = kept.unwrap_or_else(|| Arc::new(new));
    if all.len() >= MAX
        && !all.contains_key(&id)
        && let Some(oldest) = all.iter().min_by_key(|(_, n)| n.used.get()).map(|(id, _)| *id)
    {
        all.remove(&oldest);
    }
    let named = Named {
        of: Arc::clone(cluster),
        cluster: Arc::clone(&new),
        asked: now,
        until: now + holds,
        used: Cell::new(now),
        asking: Cell::new(false),
    };
    all.insert(id, named);
    Ok(new)
}
