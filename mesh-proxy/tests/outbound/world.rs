//! A worker on a thread of its own, with tables made by hand.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_api::{Resource, model};
use mesh_core::{Change, DiceKind, Tables};
use mesh_proxy::{
    gateway::Gateway,
    outbound::{Listeners, OutboundConfig, Shared, TunnelOpener, Worker, names::Names},
    telemetry::{AccessLog, AccessLogConfig, Telemetry, TelemetryConfig},
};
use node_rt::{Drain, DrainConfig, Readiness, Reason, Tasks};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::TcpStream;

use crate::upstream::{BoxError, full};
use http_body_util::combinators::BoxBody;

pub type ClientBody = BoxBody<Bytes, BoxError>;

/// What may differ from world to world.
#[derive(Default)]
pub struct Options {
    pub config: OutboundConfig,
    pub dice: Option<Arc<dyn Fn(DiceKind) -> f64 + Send + Sync>>,
    pub gateway: Option<Arc<Gateway>>,
    pub names: Option<Arc<dyn Names>>,
    pub tunnel: Option<Arc<dyn TunnelOpener>>,
    pub access_log: Option<(AccessLogConfig, Sink)>,
    /// Addresses that are called; each gets a listener.
    pub called: Vec<SocketAddr>,
}

/// Keeps what is written.
#[derive(Clone, Default)]
pub struct Sink(pub Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub struct World {
    pub tables: Arc<ArcSwap<Tables>>,
    pub shared: Arc<Shared>,
    pub proxy: SocketAddr,
    pub drain: Drain,
    registry: Registry,
    listeners: Vec<(SocketAddr, SocketAddr)>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// The virtual address that most tests call.
pub const VIP: &str = "10.96.0.1";

impl World {
    /// A world whose tables hold these resources.
    pub fn start(resources: Vec<Resource>, options: Options) -> Self {
        let tables = Tables::new().apply(resources.into_iter().map(Change::Set).collect());
        assert!(tables.1.rejected.is_empty(), "{:?}", tables.1.rejected);
        let tables = Arc::new(ArcSwap::from_pointee(tables.0));
        let registry = Registry::new();
        let telemetry = Arc::new(Telemetry::new(&registry, TelemetryConfig::default()).unwrap());
        let mut shared = Shared::new(options.config, "here".into(), Arc::clone(&tables), telemetry);
        shared.dice = options.dice;
        shared.gateway = options.gateway;
        if let Some(names) = options.names {
            shared.names = names;
        }
        shared.tunnel = options.tunnel;
        if let Some((config, sink)) = options.access_log {
            shared.access_log = AccessLog::start(&config, sink).unwrap();
        }
        let shared = Arc::new(shared);
        let bind = || {
            let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            l.set_nonblocking(true).unwrap();
            l
        };
        let proxy = bind();
        let proxy_addr = proxy.local_addr().unwrap();
        let fixed: Vec<_> = options.called.iter().map(|to| (bind(), *to)).collect();
        let listeners = fixed.iter().map(|(l, to)| (*to, l.local_addr().unwrap())).collect();
        let drain = Drain::new();
        let thread = {
            let (shared, drain) = (Arc::clone(&shared), drain.clone());
            std::thread::spawn(move || run(shared, fixed, proxy, drain))
        };
        Self { tables, shared, proxy: proxy_addr, drain, registry, listeners, thread: Some(thread) }
    }

    /// Takes resources away.
    pub fn remove(&self, kind: mesh_api::ResourceType, names: &[&str]) {
        let gone = names.iter().map(|n| Change::Remove(kind, (*n).to_owned())).collect();
        self.tables.store(Arc::new(self.tables.load().apply(gone).0));
    }

    /// Applies more resources.
    pub fn apply(&self, resources: Vec<Resource>) {
        let (tables, applied) = self.tables.load().apply(resources.into_iter().map(Change::Set).collect());
        assert!(applied.rejected.is_empty(), "{:?}", applied.rejected);
        self.tables.store(Arc::new(tables));
    }

    /// The listener that stands for an address.
    pub fn listener(&self, to: &str) -> SocketAddr {
        let to: SocketAddr = to.parse().unwrap();
        let found = self.listeners.iter().find(|(t, _)| *t == to);
        found.unwrap_or_else(|| panic!("nothing listens for {to}")).1
    }

    /// A connection as the capture would hand it over.
    pub async fn dial(&self, to: &str) -> TcpStream {
        let stream = TcpStream::connect(self.listener(to)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// An HTTP/1 client on a new connection.
    pub async fn http1(&self, to: &str) -> http1::SendRequest<ClientBody> {
        client1(self.dial(to).await).await
    }

    /// An HTTP/2 client on a new connection.
    pub async fn http2(&self, to: &str) -> http2::SendRequest<ClientBody> {
        let io = TokioIo::new(self.dial(to).await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::task::spawn(connection);
        sender
    }

    /// One GET on a new connection.
    pub async fn get(&self, to: &str, host: &str, path: &str) -> Response<Incoming> {
        let mut client = self.http1(to).await;
        client.send_request(get(host, path)).await.unwrap()
    }

    /// What a scrape would show.
    pub fn scrape(&self) -> String {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Waits until a line of the scrape has all these parts.
    pub async fn metric(&self, parts: &[&str]) -> String {
        for _ in 0..200 {
            let text = self.scrape();
            if let Some(line) = text.lines().find(|l| parts.iter().all(|p| l.contains(p))) {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let text = self.scrape();
        let lines: Vec<_> = text.lines().filter(|l| l.contains("_total{")).collect();
        panic!("no metric with {parts:?} in\n{}", lines.join("\n"));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.drain.force();
        let thread = self.thread.take();
        let drain = self.drain.clone();
        let end = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let config = DrainConfig { drain_for: Duration::ZERO, ..DrainConfig::default() };
            runtime.block_on(drain.run(config, &Readiness::new(), &Tasks::new(drain.clone())));
            thread.map(std::thread::JoinHandle::join)
        });
        let result = end.join();
        if !std::thread::panicking() {
            assert!(matches!(result, Ok(Some(Ok(())) | None)), "the worker panicked");
        }
    }
}

fn run(
    shared: Arc<Shared>,
    fixed: Vec<(std::net::TcpListener, SocketAddr)>,
    proxy: std::net::TcpListener,
    drain: Drain,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async move {
        let tokio_listener = |l| tokio::net::TcpListener::from_std(l).unwrap();
        let listeners = Listeners {
            captured: Vec::new(),
            fixed: fixed.into_iter().map(|(l, to)| (tokio_listener(l), to)).collect(),
            proxy: vec![tokio_listener(proxy)],
            udp: Vec::new(),
        };
        let ended = drain.clone();
        tokio::select! {
            () = Worker::run(shared, listeners, drain) => {}
            () = ended.cancelled() => {}
        }
    }));
}

/// Ends the world's worker as a signal would, with this long for connections to finish.
pub fn drain(world: &World, drain_for: Duration) -> std::thread::JoinHandle<node_rt::DrainReport> {
    let drain = world.drain.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        drain.begin(Reason::Requested("test"));
        let config = DrainConfig { drain_for, ..DrainConfig::default() };
        runtime.block_on(drain.run(config, &Readiness::new(), &Tasks::new(drain.clone())))
    })
}

pub async fn client1(stream: TcpStream) -> http1::SendRequest<ClientBody> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn(connection.with_upgrades());
    sender
}

pub fn get(host: &str, path: &str) -> Request<ClientBody> {
    Request::get(path).header("host", host).body(full("")).unwrap()
}

/// A service with one port, called by its namespace-default name.
pub fn service(name: &str, vip: &str, port: u16, protocol: model::Protocol) -> model::Service {
    model::Service {
        host: format!("{name}.default.svc.cluster.local"),
        namespace: "default".into(),
        name: name.into(),
        kind: model::service::Kind::ClusterIp.into(),
        vips: vec![vip.into()],
        ports: vec![model::Port { number: port.into(), name: "p".into(), protocol: protocol.into() }],
        ..Default::default()
    }
}

/// Endpoints of a service; each is `(address, version)`.
pub fn endpoints(name: &str, port: u16, at: &[(SocketAddr, &str)]) -> Resource {
    let endpoint = |(addr, version): &(SocketAddr, &str)| model::Endpoint {
        address: addr.ip().to_string(),
        ports: vec![model::PortMap { service_port: port.into(), target_port: addr.port().into() }],
        workload: Some(model::Workload {
            address: addr.ip().to_string(),
            namespace: "default".into(),
            name: format!("{name}-{version}-0"),
            owner: format!("{name}-{version}"),
            labels: [("app", name), ("version", version)]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into_iter()
                .collect(),
            service_account: format!("{name}-account"),
            ..Default::default()
        }),
        ready: true,
        ..Default::default()
    };
    Resource::Endpoints(model::Endpoints {
        host: format!("{name}.default.svc.cluster.local"),
        endpoints: at.iter().map(endpoint).collect(),
    })
}

/// A rule that sends everything to a service.
pub fn forward(name: &str) -> model::HttpRule {
    model::HttpRule {
        action: Some(model::http_rule::Action::Forward(model::Forward {
            destinations: vec![model::WeightedDestination {
                destination: Some(model::Destination {
                    host: format!("{name}.default.svc.cluster.local"),
                    ..Default::default()
                }),
                weight: 1,
                headers: None,
            }],
        })),
        ..Default::default()
    }
}

/// A service whose only rule is this one.
pub fn ruled(mut service: model::Service, rule: model::HttpRule) -> Resource {
    service.virtual_hosts =
        vec![model::VirtualHost { source: "default/test".into(), http: vec![rule], ..Default::default() }];
    Resource::Service(service)
}

pub const fn ms(value: u64) -> Option<model::Millis> {
    Some(model::Millis { value })
}
