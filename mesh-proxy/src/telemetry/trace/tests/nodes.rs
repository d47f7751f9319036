//! Nodes `a` and `b`: `client` and `db` live on the first, `web` on the second; `web` calls `db`.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_api::{Resource, model};
use mesh_core::{Change, Tables};
use mesh_tunnel::{Acceptor, Executors, NodeKey, Tunnel, TunnelConfig};
use node_rt::{Drain, Tasks};
use prometheus::Registry;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::{LocalSet, spawn_local},
};

use crate::{
    inbound::{Inbound, InboundConfig},
    outbound::{self, Listeners, OutboundConfig},
    telemetry::{
        AccessLog, Telemetry, TelemetryConfig, Tracer, TracingConfig,
        trace::{Exporter, Through},
    },
};

/// Addresses from which pods call.
pub(super) const CLIENT: &str = "127.0.0.1";
const WEB_POD: &str = "127.0.0.2";
const DB_POD: &str = "127.0.0.3";
/// Services.
pub(super) const WEB: &str = "10.96.0.7:80";
const DB: &str = "10.96.0.8:80";
/// The pod of `db` by the address at which its node reaches it.
pub(super) const NEAR: &str = "10.96.0.10:80";
/// The pod of `web` by gRPC.
pub(super) const RPC: &str = "10.96.0.9:80";

/// Runs a test on one thread.
pub(super) fn run(test: impl Future<Output = ()> + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async { tokio::time::timeout(super::LONG * 2, test).await.unwrap() });
}

/// A request as the last pod of the chain saw it, and the answer.
pub(super) struct Heard {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
}

pub(super) struct Mesh {
    registries: Vec<Registry>,
    /// What stands for a service, by node and service.
    entrances: HashMap<(&'static str, &'static str), SocketAddr>,
    heard: Arc<std::sync::Mutex<HeaderMap>>,
    _tunnels: Vec<Tunnel>,
}

fn workload(address: &str, name: &str) -> model::Workload {
    model::Workload {
        address: address.into(),
        namespace: "default".into(),
        name: format!("{name}-1"),
        owner: name.into(),
        service_account: name.into(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        ..Default::default()
    }
}

fn tables(near: SocketAddr, more: Vec<Resource>) -> Tables {
    let service = |name: &str, vip: &str, protocol: model::Protocol| {
        Resource::Service(model::Service {
            host: format!("{name}.default.svc.cluster.local"),
            namespace: "default".into(),
            name: name.into(),
            kind: model::service::Kind::ClusterIp.into(),
            vips: vec![vip.into()],
            ports: vec![model::Port { number: 80, name: "port".into(), protocol: protocol.into() }],
            ..Default::default()
        })
    };
    let endpoints = |name: &str, address: &str, port: u16, node: &str| {
        Resource::Endpoints(model::Endpoints {
            host: format!("{name}.default.svc.cluster.local"),
            endpoints: vec![model::Endpoint {
                address: address.into(),
                node: node.into(),
                ready: true,
                workload: Some(workload(address, if name == "rpc" { "web" } else { name })),
                ports: vec![model::PortMap { service_port: 80, target_port: port.into() }],
                ..Default::default()
            }],
        })
    };
    let of = |node: &str, list: &[(&str, &str)]| {
        let workloads = list.iter().map(|(a, n)| workload(a, n)).collect();
        Resource::NodeWorkloads(model::NodeWorkloads { node: node.into(), workloads })
    };
    let mut all = vec![
        of("a", &[(CLIENT, "client"), ("10.1.1.1", "db"), (DB_POD, "near")]),
        of("b", &[(WEB_POD, "web"), ("10.1.2.1", "web")]),
        service("web", "10.96.0.7", model::Protocol::Http),
        service("db", "10.96.0.8", model::Protocol::Http),
        service("rpc", "10.96.0.9", model::Protocol::Grpc),
        service("near", "10.96.0.10", model::Protocol::Http),
        endpoints("web", "10.1.2.1", 8080, "b"),
        endpoints("rpc", "10.1.2.1", 8080, "b"),
        endpoints("db", "10.1.1.1", 8080, "a"),
        endpoints("near", &near.ip().to_string(), near.port(), "a"),
    ];
    all.extend(more);
    let (tables, applied) = Tables::new().apply(all.into_iter().map(Change::Set).collect());
    assert!(applied.rejected.is_empty(), "{:?}", applied.rejected);
    tables
}

async fn tunnel(registry: &Registry) -> (Tunnel, Vec<Acceptor>) {
    let mut config = TunnelConfig::new(NodeKey::generate(), 0);
    config.listen = vec!["/ip4/127.0.0.1/tcp/0".into()];
    Tunnel::start(config, Executors::current(), registry).await.unwrap()
}

/// One node's data side; says where it stands for the services.
async fn node(
    name: &'static str,
    (tunnel, acceptors): (&Tunnel, Vec<Acceptor>),
    (tables, registry): (&Arc<ArcSwap<Tables>>, &Registry),
    tracing: &TracingConfig,
    pod: SocketAddr,
) -> Vec<((&'static str, &'static str), SocketAddr)> {
    let telemetry = Arc::new(Telemetry::new(registry, TelemetryConfig::default()).unwrap());
    let tracer = Tracer::new(tracing, registry).unwrap().unwrap();
    let drain = Drain::new();
    let mut out =
        outbound::Shared::new(OutboundConfig::default(), name.into(), tables.clone(), telemetry.clone());
    out.tunnel = Some(Arc::new(crate::tunnel_glue::Opener(tunnel.clone())));
    out.tracer = Some(tracer.clone());
    let mut fixed = Vec::new();
    let mut entrances = Vec::new();
    for service in [WEB, DB, RPC, NEAR] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        entrances.push(((name, service), listener.local_addr().unwrap()));
        fixed.push((listener, service.parse().unwrap()));
    }
    let listeners = Listeners { fixed, ..Listeners::default() };
    spawn_local(outbound::Worker::run(Arc::new(out), listeners, drain.clone()));
    let (config, log) = (InboundConfig::default(), AccessLog::off());
    let mut inbound = Inbound::new(config, name.into(), tables.clone(), telemetry, log, registry).unwrap();
    inbound.translate = Some(Arc::new(move |_| pod));
    inbound.tracer = Some(tracer.clone());
    let inbound = Arc::new(inbound);
    for acceptor in acceptors {
        spawn_local(inbound.clone().run(acceptor, drain.clone()));
    }
    let through = Through { tables: tables.clone(), proxy: None, mark: None };
    spawn_local(Exporter::new(tracer, name.into(), through, Tasks::new(drain)).run());
    entrances
}

impl Mesh {
    pub(super) async fn start(tracing: &TracingConfig, more: Vec<Resource>) -> Self {
        let heard = Arc::<std::sync::Mutex<HeaderMap>>::default();
        let db = pod(DB_POD, Arc::clone(&heard), None).await;
        let tables = Arc::new(ArcSwap::from_pointee(tables(db, more)));
        let registries = vec![Registry::new(), Registry::new()];
        let (a, of_a) = tunnel(&registries[0]).await;
        let (b, of_b) = tunnel(&registries[1]).await;
        let peer = |node: &str, t: &Tunnel| mesh_tunnel::Peer {
            node: node.into(),
            peer_id: t.peer_id(),
            addresses: t.addresses().borrow().clone(),
            ..Default::default()
        };
        a.set_peers(&[peer("b", &b)]).await;
        b.set_peers(&[peer("a", &a)]).await;
        // The pod of `web` calls through its own node, whose entrances are not known yet.
        let (say, next) = tokio::sync::watch::channel(None);
        let web = pod(CLIENT, Arc::clone(&heard), Some(next)).await;
        let mut entrances = node("a", (&a, of_a), (&tables, &registries[0]), tracing, db).await;
        let of_b = node("b", (&b, of_b), (&tables, &registries[1]), tracing, web).await;
        let to_db = of_b.iter().find(|(k, _)| k.1 == DB).unwrap().1;
        say.send_replace(Some(to_db));
        entrances.extend(of_b);
        Self { registries, entrances: entrances.into_iter().collect(), heard, _tunnels: vec![a, b] }
    }

    /// Calls a service from node `a`.
    pub(super) async fn get(&self, from: &str, service: &str, path: &str, headers: &[(&str, &str)]) -> Heard {
        let entrance = self.entrances.iter().find(|(k, _)| **k == ("a", service)).unwrap().1;
        let mut request = Request::get(path).header("host", if service == NEAR { "near" } else { "web" });
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let status = call(from, *entrance, request.body(Empty::new()).unwrap()).await;
        Heard { status, headers: self.heard.lock().unwrap().clone() }
    }

    /// Calls the gRPC service from node `a`; says what its pod heard and the status in the trailers.
    pub(super) async fn rpc(&self, path: &str, headers: &[(&str, &str)]) -> (Heard, String) {
        let entrance = self.entrances.iter().find(|(k, _)| **k == ("a", RPC)).unwrap().1;
        let stream = connect(CLIENT, *entrance).await;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        spawn_local(connection);
        let mut request =
            Request::post(format!("http://rpc{path}")).header("content-type", "application/grpc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::<Bytes>::from("ping")).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap();
        let trailer = body.trailers().map_or("", |t| t["grpc-status"].to_str().unwrap()).to_owned();
        (Heard { status, headers: self.heard.lock().unwrap().clone() }, trailer)
    }

    /// Requests that were counted with these values among their labels.
    pub(super) fn requests(&self, values: &[&str]) -> f64 {
        let families = self.registries.iter().flat_map(Registry::gather).collect::<Vec<_>>();
        let samples = families.iter().filter(|f| f.name() == "istio_requests_total");
        let fits = |m: &&prometheus::proto::Metric| {
            values.iter().all(|v| m.get_label().iter().any(|l| l.value() == *v))
        };
        samples.flat_map(|f| f.get_metric()).filter(fits).map(|m| m.get_counter().get_value()).sum()
    }

    /// The sum of a metric over both nodes.
    pub(super) fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.registries.iter().flat_map(Registry::gather).collect::<Vec<_>>();
        let samples = families.iter().filter(|f| f.name() == name).flat_map(|f| f.get_metric());
        samples
            .filter(|m| label.is_empty() || m.get_label().iter().any(|l| l.value() == label))
            .map(|m| m.get_counter().get_value() + m.get_gauge().get_value())
            .sum()
    }

    pub(super) fn outcome(&self, outcome: &str) -> f64 {
        self.metric("selvage_trace_spans_total", outcome)
    }

    pub(super) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + super::LONG;
        while !condition(self) {
            assert!(tokio::time::Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// One request on a connection of its own.
async fn call(from: &str, to: SocketAddr, request: Request<Empty<Bytes>>) -> u16 {
    let stream = connect(from, to).await;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    spawn_local(connection);
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    status
}

async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse::<IpAddr>().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// `ok`, and for gRPC a status of 5 after it.
fn answer(request: &Request<Incoming>) -> Response<UnsyncBoxBody<Bytes, std::convert::Infallible>> {
    let mut frames = vec![Ok(Frame::data(Bytes::from("ok")))];
    let mut response = Response::builder();
    if request.headers().get("content-type").is_some_and(|t| t == "application/grpc") {
        response = response.header("content-type", "application/grpc");
        let trailers = [(http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("5"))];
        frames.push(Ok(Frame::trailers(trailers.into_iter().collect())));
    }
    response.body(StreamBody::new(futures::stream::iter(frames)).boxed_unsync()).unwrap()
}

/// A pod that remembers what it heard, and for `/front` calls the next one with the trace's headers, as an application
/// in a mesh does.
async fn pod(
    address: &str,
    heard: Arc<std::sync::Mutex<HeaderMap>>,
    next: Option<tokio::sync::watch::Receiver<Option<SocketAddr>>>,
) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (heard, next) = (Arc::clone(&heard), next.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (heard, next) = (Arc::clone(&heard), next.clone());
                async move {
                    *heard.lock().unwrap() = request.headers().clone();
                    if let (Some(next), "/front") = (next, request.uri().path()) {
                        let to = next.borrow().unwrap();
                        let mut further = Request::get("/back").header("host", "db");
                        for name in ["traceparent", "tracestate", "b3"] {
                            if let Some(value) = request.headers().get(name) {
                                further = further.header(name, value);
                            }
                        }
                        call(WEB_POD, to, further.body(Empty::new()).unwrap()).await;
                    }
                    Ok::<_, std::convert::Infallible>(answer(&request))
                }
            });
            spawn_local(async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ended = server.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    address
}
