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
    // A relay has all its threads, so that its two legs can run side by side.
    let workers = pool.iter().take(if relay { pool.len() } else { 1 }).map(|w| w.0.clone()).collect();
    let executors = Executors { control: Handle::current(), workers };
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

/// What one transfer showed in one round.
#[derive(Clone, Copy)]
struct Figures {
    /// MiB a second.
    rate: f64,
    /// CPU-s a GiB of sender, receiver and the relay's threads; control threads count for sender and receiver.
    parties: [f64; 4],
}

impl Figures {
    fn cpu(&self) -> f64 {
        self.parties.iter().sum()
    }

    /// MiB a second that the busiest party could do if it had a core to itself.
    fn core(&self) -> f64 {
        1024.0 / self.parties.iter().copied().fold(0.0, f64::max)
    }
}

fn spent() -> [f64; 4] {
    let control = cpu(&["ctl"]) / 2.0;
    [cpu(&["wa"]) + control, cpu(&["wb"]) + control, cpu(&["wr-0"]), cpu(&["wr-1"])]
}

async fn measured(meter: &Transfer, time: Duration) -> Figures {
    tokio::time::sleep(Duration::from_millis(400)).await;
    let (before, began, used) = (meter.bytes.load(Ordering::Relaxed), Instant::now(), spent());
    tokio::time::sleep(time).await;
    let gib = (meter.bytes.load(Ordering::Relaxed) - before) as f64 / f64::from(1 << 30);
    let seconds = began.elapsed().as_secs_f64();
    let now = spent();
    meter.stop.store(true, Ordering::Relaxed);
    let parties = [0, 1, 2, 3].map(|i| (now[i] - used[i]) / gib);
    Figures { rate: gib * 1024.0 / seconds, parties }
}

/// What is measured, and the index of what it is compared with.
const SUBJECTS: [(&str, usize); 7] = [
    ("bare TLS on TCP", 0),
    ("bare quinn", 1),
    ("tunnel tcp", 0),
    ("tunnel quic", 1),
    ("tunnel ws", 0),
    ("relayed, tcp legs", 2),
    ("relayed, quic legs", 3),
];

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs all subjects in turns, those whose name contains `only`, and what they are compared with. A share is of the bare
/// copy with the same transport; for a relayed path of one leg, which is the tunnel without a relay.
pub(super) async fn table(
    [a, b, relay]: [&WorkerPool; 3],
    (rounds, time): (usize, Duration),
    only: Option<String>,
) {
    let mut all: Vec<[Option<Figures>; SUBJECTS.len()]> = Vec::new();
    let asked = |name: &str| only.as_ref().is_none_or(|o| name.contains(o.as_str()));
    let wanted = |i: usize| SUBJECTS.iter().enumerate().any(|(j, s)| asked(s.0) && (j == i || s.1 == i));
    for round in 0..rounds {
        let mut row = [None; SUBJECTS.len()];
        for i in (0..SUBJECTS.len()).filter(|i| wanted(*i)) {
            let (meter, tunnels) = match i {
                0 => (bare_tls(a, b).await, Vec::new()),
                1 => (bare_quinn(a, b).await, Vec::new()),
                2 => tunnelled((a, b), TCP, None).await,
                3 => tunnelled((a, b), QUIC, None).await,
                4 => tunnelled((a, b), WS, None).await,
                5 => tunnelled((a, b), TCP, Some(relay)).await,
                _ => tunnelled((a, b), QUIC, Some(relay)).await,
            };
            let figures = measured(&meter, time).await;
            let [s, r, m, n] = figures.parties;
            println!(
                "round {round} {:<20} {:>6.0} MiB/s, CPU-s/GiB: sender {s:.2}, receiver {r:.2}, relay {m:.2} + {n:.2}",
                SUBJECTS[i].0, figures.rate
            );
            row[i] = Some(figures);
            for tunnel in tunnels {
                tunnel.close().await;
            }
        }
        all.push(row);
    }
    println!("\nmedians of {rounds} rounds; shares are medians of each round's own");
    println!(
        "{:<20} {:>7} {:>10} {:>9} {:>10} {:>10}",
        "", "MiB/s", "CPU-s/GiB", "of rate", "of CPU", "of core"
    );
    for (i, (name, of)) in SUBJECTS.into_iter().enumerate().filter(|(i, _)| wanted(*i)) {
        let pairs = || all.iter().filter_map(|row| Some((row[i]?, row[of]?)));
        println!(
            "{name:<20} {:>7.0} {:>10.2} {:>8.0}% {:>9.2}x {:>9.0}%",
            median(pairs().map(|(own, _)| own.rate)),
            median(pairs().map(|(own, _)| own.cpu())),
            median(pairs().map(|(own, base)| own.rate / base.rate * 100.0)),
            median(pairs().map(|(own, base)| own.cpu() / base.cpu())),
            median(pairs().map(|(own, base)| own.core() / base.core() * 100.0)),
        );
    }
}
