//! Tunnels on loopback in one process.

use std::{future::Future, time::Duration};

use mesh_api::model::TunnelOpen;
use mesh_tunnel::{Acceptor, Executors, Incoming, NodeKey, Peer, Tunnel, TunnelConfig};
use prometheus::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A tunnel with its registry and what other nodes must know of it.
pub(crate) struct Node {
    pub(crate) tunnel: Tunnel,
    pub(crate) acceptor: Option<Acceptor>,
    pub(crate) registry: Registry,
    pub(crate) peer: Peer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Quic,
    Both,
}

impl Kind {
    fn listen(self) -> Vec<String> {
        let (tcp, quic) = ("/ip4/127.0.0.1/tcp/0".to_owned(), "/ip4/127.0.0.1/udp/0/quic-v1".to_owned());
        match self {
            Self::Tcp => vec![tcp],
            Self::Quic => vec![quic],
            Self::Both => vec![quic, tcp],
        }
    }
}

pub(crate) fn config(kind: Kind) -> TunnelConfig {
    let mut config = TunnelConfig::new(NodeKey::generate(), 0);
    config.listen = kind.listen();
    config
}

pub(crate) async fn start(name: &str, config: TunnelConfig) -> Node {
    let registry = Registry::new();
    let (tunnel, mut acceptors) = Tunnel::start(config, Executors::current(), &registry).await.unwrap();
    let addresses = tunnel.addresses().borrow().clone();
    let peer = Peer { node: name.into(), peer_id: tunnel.peer_id(), addresses, ..Peer::default() };
    Node { acceptor: acceptors.pop(), tunnel, registry, peer }
}

/// Two nodes that know each other.
pub(crate) async fn pair(kind: Kind) -> (Node, Node) {
    pair_with(config(kind), config(kind)).await
}

pub(crate) async fn pair_with(a: TunnelConfig, b: TunnelConfig) -> (Node, Node) {
    let (a, b) = (start("a", a).await, start("b", b).await);
    a.tunnel.set_peers(std::slice::from_ref(&b.peer)).await;
    b.tunnel.set_peers(std::slice::from_ref(&a.peer)).await;
    (a, b)
}

pub(crate) fn open() -> TunnelOpen {
    TunnelOpen { address: "10.0.0.1".into(), port: 80, ..Default::default() }
}

/// Answers every stream with `serve`, each in its own task.
pub(crate) fn serve<F, Fut>(mut acceptor: Acceptor, serve: F) -> tokio::task::JoinHandle<()>
where
    F: Fn(Incoming) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Handle::current();
    runtime.clone().spawn(async move {
        while let Some(incoming) = acceptor.accept().await {
            runtime.spawn(serve(incoming));
        }
    })
}

/// Echoes until the peer ends, then ends.
pub(crate) async fn echo(incoming: Incoming) {
    let Ok(stream) = incoming.accept().await else { return };
    let (mut r, mut w) = tokio::io::split(stream);
    if tokio::io::copy(&mut r, &mut w).await.is_ok() {
        let _ = w.shutdown().await;
    }
}

/// Sends `size` bytes, half-closes, reads until the end and compares.
pub(crate) async fn echo_round(node: &Node, to: &str, size: usize) {
    let stream = node.tunnel.open(to, open()).await.unwrap();
    let sent: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
    let (mut r, mut w) = tokio::io::split(stream);
    let write = async {
        w.write_all(&sent).await.unwrap();
        w.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (_, read) = tokio::join!(write, r.read_to_end(&mut back));
    read.unwrap();
    assert!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
}

/// Sum over the label sets of a counter or gauge that carry `label`.
pub(crate) fn metric(registry: &Registry, name: &str, label: Option<&str>) -> f64 {
    let families = registry.gather();
    let samples = families.iter().filter(|f| f.name() == name).flat_map(|f| f.get_metric().iter());
    samples
        .filter(|m| label.is_none_or(|l| m.get_label().iter().any(|x| x.value() == l)))
        .map(|m| m.get_counter().get_value() + m.get_gauge().get_value())
        .sum()
}

/// Waits for a condition that another task brings about.
pub(crate) async fn eventually(what: &str, limit: Duration, condition: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + limit;
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
