//! Endpoints of other nodes: through the tunnel, for the caller's sake and in its name.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::StatusCode;
use mesh_api::{
    Resource,
    model::{self, Protocol, TunnelOpen},
};
use mesh_proxy::outbound::{Stream, TunnelError, TunnelOpener};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    sync::watch,
};

use crate::{
    tls::{Ca, https},
    upstream::{Upstream, collect, full, tcp},
    world::{Options, VIP, World, client1, endpoints, get, service},
};

const TO: &str = "10.96.0.1:80";

/// A tunnel that remembers what was asked and connects straight.
struct FakeTunnel {
    opened: Arc<Mutex<Vec<(String, TunnelOpen)>>>,
    refuse: Option<TunnelError>,
    generation: Arc<AtomicU64>,
    departures: watch::Sender<u64>,
    /// The way changes while a stream is being opened.
    unsteady: AtomicBool,
    /// Streams that there are.
    streams: Arc<()>,
    /// Sizes of what went with a question.
    early: Arc<Mutex<Vec<usize>>>,
}

impl FakeTunnel {
    /// The process at the other end leaves.
    fn leave(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.departures.send_modify(|count| *count += 1);
    }

    /// Waits until no stream is left; the sweep of idle connections would take longer.
    async fn all_closed(&self) {
        let end = tokio::time::Instant::now() + Duration::from_secs(10);
        while Arc::strong_count(&self.streams) > 1 {
            assert!(tokio::time::Instant::now() < end, "streams to a process that leaves stay open");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A stream that is counted while it is there.
struct Counted(TcpStream, #[allow(dead_code, reason = "counted")] Arc<()>);

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl TunnelOpener for FakeTunnel {
    fn open<'a>(
        &'a self,
        node: &'a str,
        open: TunnelOpen,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, TunnelError>> {
        Box::pin(async move {
            let to = SocketAddr::new(open.address.parse().unwrap(), open.port as u16);
            self.opened.lock().unwrap().push((node.to_owned(), open));
            if let Some(e) = &self.refuse {
                return Err(e.clone());
            }
            let stream = TcpStream::connect(to).await.map_err(|_| TunnelError::ConnectRefused)?;
            if self.unsteady.load(Ordering::Relaxed) {
                self.leave();
            }
            Ok(Box::new(Counted(stream, self.streams.clone())) as Box<dyn Stream>)
        })
    }

    fn open_with<'a>(
        &'a self,
        node: &'a str,
        open: TunnelOpen,
        early: &'a [u8],
    ) -> BoxFuture<'a, Result<(Box<dyn Stream>, usize), TunnelError>> {
        Box::pin(async move {
            // All but one byte of it.
            let sent = early.len() - 1;
            let mut stream = self.open(node, open).await?;
            stream.write_all(&early[..sent]).await.unwrap();
            self.early.lock().unwrap().push(sent);
            Ok((stream, sent))
        })
    }

    fn generation(&self, _: &str) -> Option<Arc<AtomicU64>> {
        Some(self.generation.clone())
    }

    fn departures(&self) -> Option<watch::Receiver<u64>> {
        Some(self.departures.subscribe())
    }
}

fn on_node(resource: Resource, node: &str) -> Resource {
    let Resource::Endpoints(mut e) = resource else { unreachable!() };
    e.endpoints.iter_mut().for_each(|e| node.clone_into(&mut e.node));
    Resource::Endpoints(e)
}

/// Two callers at two addresses of this host.
fn callers() -> Resource {
    let caller = |address: &str, name: &str| model::Workload {
        address: address.into(),
        namespace: "default".into(),
        name: name.into(),
        service_account: format!("{name}-account"),
        ..Default::default()
    };
    Resource::NodeWorkloads(model::NodeWorkloads {
        node: "here".into(),
        workloads: vec![caller("127.0.0.1", "one"), caller("127.0.0.2", "two")],
    })
}

type Opened = Arc<Mutex<Vec<(String, TunnelOpen)>>>;

fn start(resources: Vec<Resource>, refuse: Option<TunnelError>) -> (World, Opened) {
    let (world, tunnel) = start_with(resources, refuse);
    (world, tunnel.opened.clone())
}

fn start_with(resources: Vec<Resource>, refuse: Option<TunnelError>) -> (World, Arc<FakeTunnel>) {
    let tunnel = Arc::new(FakeTunnel {
        opened: Arc::default(),
        refuse,
        generation: Arc::default(),
        departures: watch::Sender::new(0),
        unsteady: AtomicBool::new(false),
        streams: Arc::new(()),
        early: Arc::default(),
    });
    let opener: Arc<dyn TunnelOpener> = tunnel.clone();
    let options = Options { called: vec![TO.parse().unwrap()], tunnel: Some(opener), ..Options::default() };
    (World::start(resources, options), tunnel)
}

async fn dial_from(world: &World, source: &str) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    socket.connect(world.listener(TO)).await.unwrap()
}

#[tokio::test]
async fn requests_go_through_the_owners_node_and_connections_are_not_shared_between_callers() {
    let upstream = Upstream::start("v1").await;
    let (world, opened) = start(
        vec![
            callers(),
            Resource::Service(service("web", VIP, 80, Protocol::Http)),
            on_node(endpoints("web", 80, &[(upstream.addr, "v1")]), "there"),
        ],
        None,
    );
    for source in ["127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"] {
        let mut client = client1(dial_from(&world, source).await).await;
        for _ in 0..3 {
            let response = client.send_request(get("web", "/")).await.unwrap();
            assert_eq!(collect(response.into_body()).await.0, "v1");
        }
    }
    let opened = opened.lock().unwrap().clone();
    assert_eq!(opened.len(), 2, "one connection for each caller, kept: {opened:?}");
    for ((node, open), name) in opened.iter().zip(["one", "two"]) {
        assert_eq!(node, "there");
        assert_eq!(open.host, "web.default.svc.cluster.local");
        assert_eq!(open.kind(), model::tunnel_open::Kind::Http);
        assert_eq!(open.port, u32::from(upstream.addr.port()));
        let source = open.source.as_ref().unwrap();
        assert_eq!(
            (source.name.as_str(), source.service_account.as_str()),
            (name, &*format!("{name}-account"))
        );
    }
}

#[tokio::test]
async fn endpoints_of_this_node_are_reached_directly() {
    let upstream = Upstream::start("v1").await;
    let (world, opened) = start(
        vec![
            Resource::Service(service("web", VIP, 80, Protocol::Http)),
            on_node(endpoints("web", 80, &[(upstream.addr, "v1")]), "here"),
        ],
        None,
    );
    assert_eq!(world.get(TO, "web", "/").await.status(), StatusCode::OK);
    assert!(opened.lock().unwrap().is_empty());
}

/// What `tls.mode` of a DestinationRule means for pods: the way between nodes is mTLS whatever it says; a handshake of
/// our own inside comes with SIMPLE and MUTUAL alone.
#[tokio::test]
async fn tls_towards_pods_is_the_tunnels_unless_a_rule_opens_its_own() {
    use model::client_tls::Mode;
    let ruled = |mode: Mode| {
        let tls = model::ClientTls { mode: mode.into(), insecure_skip_verify: true, ..Default::default() };
        let policy = model::TrafficPolicy { tls: Some(tls), ..Default::default() };
        let mut web = service("web", VIP, 80, Protocol::Http);
        web.policies = vec![model::DestinationPolicy {
            source: "default/web".into(),
            policy: Some(policy),
            ..Default::default()
        }];
        Resource::Service(web)
    };
    let plain = Upstream::start("v1").await;
    let secure =
        https(Ca::new().pair(&["web.default.svc.cluster.local"]).acceptor(&["http/1.1"], None)).await;
    for (mode, to, node, status) in [
        (Mode::IstioMutual, plain.addr, "there", StatusCode::OK),
        (Mode::IstioMutual, plain.addr, "here", StatusCode::OK),
        // Nobody in between: our own certificate would be shown, and this node has none.
        (Mode::IstioMutual, plain.addr, "", StatusCode::SERVICE_UNAVAILABLE),
        (Mode::Disable, plain.addr, "there", StatusCode::OK),
        (Mode::Disable, plain.addr, "", StatusCode::OK),
        (Mode::Simple, secure, "there", StatusCode::OK),
        (Mode::Simple, secure, "here", StatusCode::OK),
        (Mode::Simple, plain.addr, "there", StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let (world, opened) =
            start(vec![callers(), ruled(mode), on_node(endpoints("web", 80, &[(to, "v1")]), node)], None);
        assert_eq!(world.get(TO, "web", "/").await.status(), status, "{mode:?} towards {node:?}");
        let opened = opened.lock().unwrap();
        assert_eq!(!opened.is_empty(), node == "there", "{mode:?} towards {node:?}: {opened:?}");
        assert!(opened.iter().all(|(to, _)| to == "there"), "{opened:?}");
    }
}

#[tokio::test]
async fn a_refusal_by_the_owner_is_told_apart() {
    let (world, _opened) = start(
        vec![
            Resource::Service(service("web", VIP, 80, Protocol::Http)),
            on_node(endpoints("web", 80, &[("127.0.0.1:1".parse().unwrap(), "v1")]), "there"),
        ],
        Some(TunnelError::Refused("not yours".to_owned())),
    );
    let response = world.get(TO, "web", "/").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let body = collect(response.into_body()).await.0;
    assert!(String::from_utf8_lossy(&body).contains("refused by the endpoint's node"), "{body:?}");
    world.metric(&["istio_requests_total{", "response_flags=\"UAEX"]).await;
}

#[tokio::test]
async fn bytes_go_through_the_tunnel_with_half_close() {
    let addr = tcp(|mut s| async move {
        let mut all = Vec::new();
        s.read_to_end(&mut all).await.unwrap();
        all.reverse();
        s.write_all(&all).await.unwrap();
    })
    .await;
    let (world, opened) = start(
        vec![
            Resource::Service(service("raw", VIP, 80, Protocol::Tcp)),
            on_node(endpoints("raw", 80, &[(addr, "v1")]), "there"),
        ],
        None,
    );
    let mut stream = world.dial(TO).await;
    stream.write_all(b"abc").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "cba");
    assert_eq!(opened.lock().unwrap()[0].1.kind(), model::tunnel_open::Kind::Tcp);
}

#[tokio::test]
async fn pooled_connections_move_when_there_is_a_better_path() {
    let upstream = Upstream::start("v1").await;
    let (world, tunnel) = start_with(
        vec![
            callers(),
            Resource::Service(service("web", VIP, 80, Protocol::Http)),
            on_node(endpoints("web", 80, &[(upstream.addr, "v1")]), "there"),
        ],
        None,
    );
    let mut client = client1(dial_from(&world, "127.0.0.1").await).await;
    for (moved, connections) in [(0, 1), (0, 1), (1, 2), (0, 2), (1, 3)] {
        tunnel.generation.fetch_add(moved, Ordering::Relaxed);
        let response = client.send_request(get("web", "/")).await.unwrap();
        assert_eq!(collect(response.into_body()).await.0, "v1");
        assert_eq!(tunnel.opened.lock().unwrap().len(), connections);
    }
}

/// With HTTP/1 and HTTP/2; from a caller that the mesh knows, and from one that it does not.
fn kinds() -> Vec<(Protocol, Vec<Resource>)> {
    let protocols = [Protocol::Http, Protocol::Http2];
    protocols.into_iter().flat_map(|p| [(p, vec![callers()]), (p, Vec::new())]).collect()
}

async fn served_there((protocol, mut resources): (Protocol, Vec<Resource>)) -> (World, Arc<FakeTunnel>) {
    let upstream = Upstream::start("v1").await;
    resources.push(Resource::Service(service("web", VIP, 80, protocol)));
    resources.push(on_node(endpoints("web", 80, &[(upstream.addr, "v1")]), "there"));
    start_with(resources, None)
}

/// One request; its connection is in the pool by the end.
async fn ask(world: &World) {
    assert_eq!(collect(world.get(TO, "web", "/").await.into_body()).await.0, "v1");
}

#[tokio::test]
async fn a_process_that_leaves_does_not_wait_for_pooled_connections() {
    for kind in kinds() {
        let (world, tunnel) = served_there(kind).await;
        ask(&world).await;
        // Pooled: the next request takes the same stream.
        ask(&world).await;
        assert_eq!(tunnel.opened.lock().unwrap().len(), 1);
        tunnel.leave();
        tunnel.all_closed().await;
        // One that is used meanwhile closes when its request has ended.
        let mut client = world.http1(TO).await;
        let slow = http::Request::get("/").header("host", "web").header("x-test-delay-ms", "500");
        let answer = tokio::spawn(client.send_request(slow.body(full("")).unwrap()));
        while tunnel.opened.lock().unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        tunnel.leave();
        assert_eq!(answer.await.unwrap().unwrap().status(), StatusCode::OK);
        tunnel.all_closed().await;
    }
}

#[tokio::test]
async fn a_stream_that_was_asked_for_on_the_old_way_serves_one_request() {
    for kind in kinds() {
        let (world, tunnel) = served_there(kind).await;
        tunnel.unsteady.store(true, Ordering::Relaxed);
        ask(&world).await;
        tunnel.unsteady.store(false, Ordering::Relaxed);
        tunnel.all_closed().await;
        ask(&world).await;
        ask(&world).await;
        assert_eq!(tunnel.opened.lock().unwrap().len(), 2, "the next one is on the new way, and stays");
    }
}

#[tokio::test]
async fn what_the_client_has_said_travels_with_the_question_if_one_endpoint_only_can_get_it() {
    let echo = async || {
        tcp(|mut s| async move {
            let mut all = Vec::new();
            s.read_to_end(&mut all).await.unwrap();
            s.write_all(&all).await.unwrap();
        })
        .await
    };
    let (one, other) = (echo().await, echo().await);
    for (all, went) in [(vec![(one, "v1")], 1), (vec![(one, "v1"), (other, "v1")], 0)] {
        let (world, tunnel) = start_with(
            vec![
                Resource::Service(service("raw", VIP, 80, Protocol::Unspecified)),
                on_node(endpoints("raw", 80, &all), "there"),
            ],
            None,
        );
        let mut stream = world.dial(TO).await;
        stream.write_all(b"\x01\x02 something of its own").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, b"\x01\x02 something of its own", "each byte once, in order");
        assert_eq!(tunnel.early.lock().unwrap().len(), went, "{} endpoints", all.len());
    }
}
