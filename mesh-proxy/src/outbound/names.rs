//! Addresses of names outside the mesh, asked of the name servers outside: ours would answer with addresses of the mesh.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Mutex,
    sync::PoisonError,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use hickory_resolver::{
    TokioResolver,
    config::{
        ConnectionConfig, LookupIpStrategy, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig,
        ResolverOpts,
    },
    net::runtime::TokioRuntimeProvider,
};

/// How long an answer holds at least and at most, whatever it says.
const HOLDS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
/// Where the system's own resolver says nothing about time.
const UNSAID: Duration = Duration::from_secs(30);
/// How often the list of servers is looked at.
const SERVERS_EVERY: Duration = Duration::from_secs(10);
/// Most addresses of one name that are used.
const MAX: usize = 64;

/// Addresses of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// In the order of the answer.
    pub addresses: Vec<IpAddr>,
    /// How long they hold.
    pub holds: Duration,
}

/// Looks names up.
pub trait Names: Send + Sync {
    /// The addresses of a name.
    fn lookup<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Resolved>>;
}

/// The system's resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemNames;

impl Names for SystemNames {
    fn lookup<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Resolved>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await?;
            let mut addresses: Vec<IpAddr> = found.map(|a| a.ip()).take(MAX).collect();
            addresses.dedup();
            Ok(Resolved { addresses, holds: UNSAID })
        })
    }
}

/// Name servers, asked directly.
pub struct ServerNames {
    servers: Box<dyn Fn() -> Vec<SocketAddr> + Send + Sync>,
    resolver: Mutex<Option<Known>>,
}

struct Known {
    servers: Vec<SocketAddr>,
    looked: Instant,
    resolver: Option<TokioResolver>,
}

impl std::fmt::Debug for ServerNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerNames")
    }
}

impl ServerNames {
    /// Asks the servers that `servers` names, which is looked at now and then. None: the system's resolver is asked.
    pub fn new(servers: impl Fn() -> Vec<SocketAddr> + Send + Sync + 'static) -> Self {
        Self { servers: Box::new(servers), resolver: Mutex::default() }
    }

    fn resolver(&self) -> Option<TokioResolver> {
        let mut known = self.resolver.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(k) = &*known
            && k.looked.elapsed() < SERVERS_EVERY
        {
            return k.resolver.clone();
        }
        let servers = (self.servers)();
        let resolver = match known.take() {
            Some(k) if k.servers == servers => k.resolver,
            _ => resolver(&servers),
        };
        *known = Some(Known { servers, looked: Instant::now(), resolver: resolver.clone() });
        resolver
    }
}

impl Names for ServerNames {
    fn lookup<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Resolved>> {
        Box::pin(async move {
            if let Ok(ip) = name.parse() {
                return Ok(Resolved { addresses: vec![ip], holds: *HOLDS.end() });
            }
            let Some(resolver) = self.resolver() else { return SystemNames.lookup(name).await };
            let absolute = if name.ends_with('.') { name.to_owned() } else { format!("{name}.") };
            let found = resolver.lookup_ip(absolute).await.map_err(io::Error::other)?;
            let holds = found.valid_until().saturating_duration_since(Instant::now());
            let addresses = found.iter().take(MAX).collect();
            Ok(Resolved { addresses, holds: holds.clamp(*HOLDS.start(), *HOLDS.end()) })
        })
    }
}

fn resolver(servers: &[SocketAddr]) -> Option<TokioResolver> {
    if servers.is_empty() {
        return None;
    }
    let server = |address: &SocketAddr| {
        let connection = |protocol| {
            let mut connection = ConnectionConfig::new(protocol);
            connection.port = address.port();
            connection
        };
        let both = vec![connection(ProtocolConfig::Udp), connection(ProtocolConfig::Tcp)];
        NameServerConfig::new(address.ip(), true, both)
    };
    let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect());
    let mut options = ResolverOpts::default();
    options.timeout = Duration::from_secs(2);
    options.attempts = 2;
    // The caller remembers what it asked; a few seconds here join the workers' questions.
    options.cache_size = 256;
    options.use_hosts_file = ResolveHosts::Always;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.try_tcp_on_error = true;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().inspect_err(|error| tracing::error!(%error, "no resolver for names outside")).ok()
}
