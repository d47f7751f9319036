//! One stream at full speed, one core at each end: each kind of path beside bare TLS on TCP and bare quinn, which are
//! what it is compared with. All in one run, in turns, because machines drift.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_api::model::TunnelOpen;
use mesh_tunnel::{Acceptor, Executors, NodeKey, Peer, Tunnel, TunnelConfig};
use prometheus::Registry;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs::{self, cipher_suite::TLS13_AES_128_GCM_SHA256},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::oneshot,
    task::spawn_local,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{WorkerPool, cpu};

const BLOCK: usize = 64 * 1024;

#[derive(Default)]
struct Meter {
    bytes: AtomicU64,
    stop: AtomicBool,
}

async fn send(mut stream: impl AsyncWrite + Unpin, meter: Arc<Meter>) {
    let block = vec![7; BLOCK];
    while stream.write_all(&block).await.is_ok() {
        if meter.stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

async fn receive(mut stream: impl AsyncRead + Unpin, meter: Arc<Meter>) {
    let mut block = vec![0; BLOCK];
    while let Ok(n @ 1..) = stream.read(&mut block).await {
        meter.bytes.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Runs something on the first worker of a pool.
async fn on<T: Send + 'static, F>(pool: &WorkerPool, what: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = T> + 'static,
{
    let (sender, done) = oneshot::channel();
    let job = Box::new(move || {
        spawn_local(async move {
            let _ = sender.send(what().await);
        });
    });
    pool[0].1.send(job).await.ok().unwrap();
    done.await.unwrap()
}

/// A running transfer: who is measured is decided by the threads it runs on.
type Transfer = Arc<Meter>;

fn certificates() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut provider = aws_lc_rs::default_provider();
    // What the tunnel takes where the processor has instructions for AES.
    provider.cipher_suites = vec![TLS13_AES_128_GCM_SHA256];
    let provider = Arc::new(provider);
    let versions = [&rustls::version::TLS13];
    let server =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&versions).unwrap();
    let server = server.with_no_client_auth().with_single_cert(vec![certificate.clone()], key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions).unwrap();
    (Arc::new(server), Arc::new(client.with_root_certificates(roots).with_no_client_auth()))
}

async fn bare_tls(a: &WorkerPool, b: &WorkerPool) -> Transfer {
    let (server, client) = certificates();
    let meter = Transfer::default();
    let receiving = meter.clone();
    let address = on(b, move || async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        spawn_local(async move {
            let (socket, _) = listener.accept().await.unwrap();
            receive(TlsAcceptor::from(server).accept(socket).await.unwrap(), receiving).await;
        });
        address
    })
    .await;
    let sending = meter.clone();
    on(a, move || async move {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(client).connect(name, socket).await.unwrap();
        spawn_local(send(stream, sending));
    })
    .await;
    meter
}

async fn bare_quinn(a: &WorkerPool, b: &WorkerPool) -> Transfer {
    let (server, client) = certificates();
    let meter = Transfer::default();
    let receiving = meter.clone();
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let address = on(b, move || async move {
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(server).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let endpoint = quinn::Endpoint::server(config, local).unwrap();
        let address = endpoint.local_addr().unwrap();
        spawn_local(async move {
            let connection = endpoint.accept().await.unwrap().await.unwrap();
            receive(connection.accept_uni().await.unwrap(), receiving).await;
        });
        address
    })
    .await;
    let sending = meter.clone();
    on(a, move || async move {
        let mut endpoint = quinn::Endpoint::client(local).unwrap();
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(client).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        let connection = endpoint.connect(address, "localhost").unwrap().await.unwrap();
        let stream = connection.open_uni().await.unwrap();
        spawn_local(async move {
            send(stream, sending).await;
            drop((connection, endpoint));
        });
    })
    .await;
    meter
}

/// A tunnel whose connections run on the workers of a pool.
async fn node(pool: &WorkerPool, listen: &[&str], relay: bool) -> (Tunnel, Vec<Acceptor>) {
    let executors = Executors { control: Handle::current(), workers: vec![pool[0].0.clone()] };
    let mut config = TunnelConfig::new(NodeKey::generate(), 0);
    config.listen = listen.iter().map(ToString::to_string).collect();
    config.nat.relay.enabled = relay;
    config.nat.punch = false;
    Tunnel::start(config, executors, &Registry::new()).await.unwrap()
}

fn peer(name: &str, tunnel: &Tunnel, relay: bool) -> Peer {
    let addresses = tunnel.addresses().borrow().clone();
    Peer { node: name.into(), peer_id: tunnel.peer_id(), addresses, relay, ..Peer::default() }
}

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const WS: &str = "/ip4/127.0.0.1/tcp/0/tls/ws";

/// A stream of the tunnel over one transport; with `through`, over a relay on that pool.
async fn tunnelled(
    (a, b): (&WorkerPool, &WorkerPool),
    listen: &'static str,
    through: Option<&WorkerPool>,
) -> (Transfer, Vec<Tunnel>) {
    let (near, _) = node(a, &[listen], false).await;
    let (far, acceptors) = node(b, &[listen], false).await;
    let mut peers = vec![peer("a", &near, false), peer("b", &far, false)];
    let mut tunnels = vec![near.clone(), far.clone()];
    if let Some(pool) = through {
        let (relay, _) = node(pool, &[listen], true).await;
        peers.push(peer("r", &relay, true));
        peers[0].addresses.clear();
        peers[1].addresses.clear();
        tunnels.push(relay);
    }
    for tunnel in &tunnels {
        tunnel.set_peers(&peers).await;
    }
    if through.is_some() {
        let mut report = far.nat();
        report.wait_for(|r| !r.reservations.is_empty()).await.unwrap();
        peers[1].reservations.clone_from(&far.nat().borrow().reservations);
        near.set_peers(&peers).await;
    }
    let meter = Transfer::default();
    let receiving = meter.clone();
    on(b, move || async move {
        spawn_local(async move {
            let mut acceptor = acceptors.into_iter().next().unwrap();
            receive(acceptor.accept().await.unwrap().accept().await.unwrap(), receiving).await;
        });
    })
    .await;
    let sending = meter.clone();
    on(a, move || async move {
        let open = TunnelOpen { address: "10.0.0.1".into(), port: 80, ..Default::default() };
        let stream = near.open("b", open).await.unwrap();
        spawn_local(send(stream, sending));
    })
    .await;
    (meter, tunnels)
}

/// MiB a second and CPU-s a GiB of the ends.
async fn measured(meter: &Transfer, time: Duration) -> (f64, f64) {
    const ENDS: [&str; 3] = ["wa", "wb", "ctl"];
    tokio::time::sleep(Duration::from_millis(400)).await;
    let (before, began, spent) = (meter.bytes.load(Ordering::Relaxed), Instant::now(), cpu(&ENDS));
    tokio::time::sleep(time).await;
    let gib = (meter.bytes.load(Ordering::Relaxed) - before) as f64 / f64::from(1 << 30);
    let result = (gib * 1024.0 / began.elapsed().as_secs_f64(), (cpu(&ENDS) - spent) / gib);
    meter.stop.store(true, Ordering::Relaxed);
    result
}

/// Prints a table; the share is of the bare copy with the same transport.
pub(super) async fn table(a: &WorkerPool, b: &WorkerPool, relay: &WorkerPool, rounds: usize, time: Duration) {
    for round in 0..rounds {
        println!("bulk, round {round}: one stream, one core at each end");
        let tls = measured(&bare_tls(a, b).await, time).await;
        let quinn = measured(&bare_quinn(a, b).await, time).await;
        let line = |name: &str, (rate, cpu): (f64, f64), bare: (f64, f64)| {
            let share = rate / bare.0 * 100.0;
            println!("{name:<28} {rate:>7.0} MiB/s {cpu:>7.2} CPU-s/GiB {share:>5.0} % of bare");
        };
        line("bare TLS on TCP", tls, tls);
        line("bare quinn", quinn, quinn);
        for (name, listen, through, bare) in [
            ("tunnel tcp", TCP, None, tls),
            ("tunnel quic", QUIC, None, quinn),
            ("tunnel ws", WS, None, tls),
            ("tunnel relayed, tcp legs", TCP, Some(relay), tls),
            ("tunnel relayed, quic legs", QUIC, Some(relay), quinn),
        ] {
            let (meter, tunnels) = tunnelled((a, b), listen, through).await;
            line(name, measured(&meter, time).await, bare);
            for tunnel in tunnels {
                tunnel.close().await;
            }
        }
    }
}
