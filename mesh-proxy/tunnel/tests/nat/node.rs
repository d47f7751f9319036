//! A node of a world: this same test program, started again inside a place. The registry is a folder with a file for
//! each node, as a controller would distribute it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use mesh_testkit::lab::{Place, Proc};
use mesh_tunnel::{Executors, NodeKey, Peer, Tunnel, TunnelConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{echo, open, serve};

const PORT: u16 = 15008;

/// What a node is told on its command line.
pub(crate) struct Start<'a> {
    pub(crate) name: &'a str,
    /// `tcp`, `quic` or `both`, on IPv4; `both families`, each of them.
    pub(crate) transport: &'a str,
    pub(crate) relay: bool,
    /// The registry's addresses are old ones, and there are no relays: peers are on the LAN or nowhere.
    pub(crate) dark: bool,
    /// Peers that it calls, one after the other; one that begins with `+` all the time, until the end; one that begins
    /// with `?` for a moment only: it may not be reached.
    pub(crate) calls: &'a [String],
}

/// Starts a node in a place.
pub(crate) fn spawn(place: Place<'_>, registry: &Path, start: &Start<'_>) -> Proc {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "nat::node::the_node_of_a_world", "--nocapture", "--test-threads=1"]);
    command
        .env("NODE_NAME", start.name)
        .env("NODE_REGISTRY", registry)
        .env("NODE_TRANSPORT", start.transport);
    command.env("NODE_RELAY", if start.relay { "1" } else { "" }).env("NODE_CALLS", start.calls.join(","));
    command.env("NODE_DARK", if start.dark { "1" } else { "" });
    place.spawn(start.name, &command).unwrap()
}

/// What became of a call.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Until the first byte came back.
    pub(crate) first_byte: Duration,
    /// Until the path was direct, if it ever was.
    pub(crate) upgraded: Option<Duration>,
    pub(crate) path: String,
    pub(crate) transport: String,
    /// Punches that it took.
    pub(crate) attempts: u32,
    /// Kinds of NAT as the caller says: its own and the peer's.
    pub(crate) nat: (String, String),
    pub(crate) why: String,
}

/// Reads the calls of a node that have ended.
pub(crate) fn calls(registry: &Path, node: &str) -> BTreeMap<String, Call> {
    let text = fs::read_to_string(registry.join(format!("{node}.calls"))).unwrap_or_default();
    let line = |line: &str| {
        let f: Vec<&str> = line.split('|').collect();
        let millis = |s: &str| s.parse().ok().map(Duration::from_millis);
        let call = Call {
            first_byte: millis(f.get(1)?)?,
            upgraded: millis(f.get(2)?),
            path: f.get(3)?.to_string(),
            transport: f.get(4)?.to_string(),
            attempts: f.get(5)?.parse().ok()?,
            nat: (f.get(6)?.to_string(), f.get(7)?.to_string()),
            why: f.get(8)?.to_string(),
        };
        Some((f.first()?.to_string(), call))
    };
    text.lines().filter_map(line).collect()
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Said {
    pub(crate) peer: Peer,
    /// Addresses that its router opened.
    pub(crate) given: Vec<String>,
    /// Whether others get in.
    pub(crate) reached: Option<bool>,
}

/// What a node says of itself.
pub(crate) fn peer(registry: &Path, node: &str) -> Option<Said> {
    read_all(&registry.join(node))
}

/// Whether a node holds reservations.
pub(crate) fn is_reserved(registry: &Path, node: &str, count: usize) -> bool {
    read(&registry.join(node)).is_some_and(|p| {
        let relays = p.reservations.iter().filter_map(|r| r.split("/p2p/").nth(1));
        relays.collect::<std::collections::BTreeSet<_>>().len() >= count
    })
}

/// The kind of NAT that a node says it is behind.
pub(crate) fn nat(registry: &Path, node: &str) -> String {
    read(&registry.join(node)).map_or_else(String::new, |p| p.nat)
}

fn write(registry: &Path, said: &Said) {
    let peer = &said.peer;
    let text = format!(
        "{}|{}|{}|{}|{}|{}|{}|{}",
        peer.node,
        peer.peer_id,
        peer.relay,
        peer.nat,
        peer.addresses.join(","),
        peer.reservations.join(","),
        said.given.join(","),
        said.reached.map_or("", |r| if r { "yes" } else { "no" }),
    );
    let draft = registry.join(format!("{}.new", peer.node));
    fs::write(&draft, text).unwrap();
    fs::rename(&draft, registry.join(&peer.node)).unwrap();
}

fn read(path: &Path) -> Option<Peer> {
    read_all(path).map(|said| said.peer)
}

fn read_all(path: &Path) -> Option<Said> {
    let text = fs::read_to_string(path).ok()?;
    let f: Vec<&str> = text.split('|').collect();
    let list = |s: &str| s.split(',').filter(|a| !a.is_empty()).map(str::to_owned).collect();
    let peer = Peer {
        node: f.first()?.to_string(),
        peer_id: f.get(1)?.to_string(),
        relay: *f.get(2)? == "true",
        nat: f.get(3)?.to_string(),
        addresses: list(f.get(4)?),
        reservations: list(f.get(5)?),
    };
    let reached = f.get(7).filter(|r| !r.is_empty()).map(|r| *r == "yes");
    Some(Said { peer, given: list(f.get(6)?), reached })
}

fn peers(registry: &Path) -> Vec<Peer> {
    let files = fs::read_dir(registry).unwrap().flatten().map(|e| e.path());
    files.filter(|p| p.extension().is_none()).filter_map(|p| read(&p)).collect()
}

/// Does nothing unless it is started as a node.
#[test]
fn the_node_of_a_world() {
    let Ok(name) = std::env::var("NODE_NAME") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(run(name));
}

async fn run(name: String) {
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    let registry = PathBuf::from(var("NODE_REGISTRY"));
    let mut config = TunnelConfig::new(NodeKey::generate(), PORT);
    match var("NODE_TRANSPORT").as_str() {
        "tcp" => config.listen.retain(|a| a.contains("tcp")),
        "quic" => config.listen.retain(|a| a.contains("quic")),
        "both families" => {
            let six: Vec<String> =
                config.listen.iter().map(|a| a.replace("/ip4/0.0.0.0/", "/ip6/::/")).collect();
            config.listen.extend(six);
        }
        _ => {}
    }
    config.nat.relay.enabled = !var("NODE_RELAY").is_empty();
    config.nat.node.clone_from(&name);
    let dark = !var("NODE_DARK").is_empty();
    config.nat.mdns = dark;
    (config.nat.upnp, config.nat.autonat) = (!dark, !dark);
    let relay = config.nat.relay.enabled;
    let metrics = prometheus::Registry::new();
    let (tunnel, mut acceptors) = Tunnel::start(config, Executors::current(), &metrics).await.unwrap();
    let server = serve(acceptors.pop().unwrap(), echo);
    let mut known = Vec::new();
    let mut own = Said::default();
    let calls: Vec<String> =
        var("NODE_CALLS").split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect();
    let caller = tokio::runtime::Handle::current().spawn(call_all(
        tunnel.clone(),
        registry.clone(),
        name.clone(),
        calls,
    ));
    loop {
        let report = tunnel.nat().borrow().clone();
        let mut addresses: Vec<String> =
            tunnel.addresses().borrow().iter().filter(|a| !a.contains("127.0.0.1")).cloned().collect();
        addresses.extend(report.addresses.iter().cloned());
        let peer = Peer {
            node: name.clone(),
            peer_id: tunnel.peer_id(),
            addresses,
            relay,
            reservations: report.reservations,
            nat: report.nat,
        };
        let now = Said { peer, given: report.addresses, reached: report.reached };
        if now != own {
            write(&registry, &now);
            own = now;
        }
        let mut all = peers(&registry);
        for peer in all.iter_mut().filter(|_| dark) {
            peer.addresses = vec!["/ip4/192.168.1.250/tcp/15008".to_owned()];
        }
        all.sort_by(|a, b| a.node.cmp(&b.node));
        if all != known {
            tunnel.set_peers(&all).await;
            known = all;
        }
        if registry.join("end.now").exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    caller.abort();
    tunnel.close().await;
    server.abort();
}

async fn call_all(tunnel: Tunnel, registry: PathBuf, name: String, calls: Vec<String>) {
    while !registry.join("go.now").exists() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut out = String::new();
    for peer in calls {
        if let Some(peer) = peer.strip_prefix('+') {
            return look(&tunnel, &registry, &name, peer).await;
        }
        let (peer, patience) = match peer.strip_prefix('?') {
            Some(peer) => (peer, Duration::from_secs(3)),
            None => (peer.as_str(), Duration::from_secs(20)),
        };
        out += &call(&tunnel, peer, patience).await;
        fs::write(registry.join(format!("{name}.calls")), &out).unwrap();
    }
}

/// Calls a peer and watches the path for a while.
async fn call(tunnel: &Tunnel, peer: &str, patience: Duration) -> String {
    let (began, wall) = (Instant::now(), SystemTime::now());
    let first_byte = loop {
        let round = async {
            let mut stream = tunnel.open(peer, open()).await?;
            stream.write_all(b"x").await.unwrap();
            let mut byte = [0];
            let back = stream.read_exact(&mut byte).await;
            Ok::<_, mesh_tunnel::OpenError>(back.is_ok())
        };
        match round.await {
            Ok(true) => break began.elapsed(),
            other => eprintln!("{peer}: {other:?}"),
        }
        if began.elapsed() > patience {
            return format!("{peer}|0||none|none|0|||\n");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let best = || tunnel.paths().into_iter().find(|p| p.peer == peer && p.active);
    let mut upgraded = None;
    // Time for one attempt, and a second one after its pause.
    while began.elapsed() < Duration::from_secs(14) {
        if best().is_some_and(|p| p.path.as_str() != "relayed") {
            upgraded = Some(began.elapsed());
            break;
        }
        let known = tunnel.knowledge(peer).unwrap_or_default();
        let hopeless = !mesh_tunnel::NatKind::parse(&tunnel.nat().borrow().nat).can_punch(known.nat);
        let failed = known.last_punch.is_some_and(|p| p.at > wall && (hopeless || p.attempts > 1));
        if failed {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What the punch has just ended with is written down a moment later.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let known = tunnel.knowledge(peer).unwrap_or_default();
    let path = best();
    let path = path.as_ref();
    format!(
        "{peer}|{}|{}|{}|{}|{}|{}|{}|{}\n",
        first_byte.as_millis(),
        upgraded.map_or_else(String::new, |d| d.as_millis().to_string()),
        path.map_or("none", |p| p.path.as_str()),
        path.map_or("none", |p| p.transport.as_str()),
        known.last_punch.map_or(0, |p| p.attempts),
        tunnel.nat().borrow().nat,
        known.nat.as_str(),
        path.map_or("", |p| &p.why_not_better),
    )
}

/// One of the opens that follow each other all the time.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) began: SystemTime,
    pub(crate) ended: SystemTime,
    /// `path|transport`; none: it failed.
    pub(crate) path: Option<String>,
    /// Long streams so far, and bytes that came back on the last one.
    pub(crate) long: (u64, u64),
}

/// Reads the opens of a node.
pub(crate) fn looks(registry: &Path, node: &str) -> Vec<Look> {
    let text = fs::read_to_string(registry.join(format!("{node}.looks"))).unwrap_or_default();
    let line = |line: &str| {
        let f: Vec<&str> = line.split(' ').collect();
        let time = |s: &str| Some(SystemTime::UNIX_EPOCH + Duration::from_millis(s.parse().ok()?));
        Some(Look {
            began: time(f.first()?)?,
            ended: time(f.get(1)?)?,
            path: f.get(2).filter(|p| **p != "-").map(|p| p.to_string()),
            long: (f.get(3)?.parse().ok()?, f.get(4)?.parse().ok()?),
        })
    };
    // The last line may be half written.
    let end = text.rfind('\n').map_or(0, |n| n + 1);
    text[..end].lines().filter_map(line).collect()
}

/// Opens streams to a peer all the time, and keeps one that carries a byte now and then.
async fn look(tunnel: &Tunnel, registry: &Path, name: &str, peer: &str) {
    use std::{
        io::Write as _,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
    };
    let file = registry.join(format!("{name}.looks"));
    let mut out = fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
    let long = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let keeper = tokio::runtime::Handle::current().spawn({
        let (tunnel, peer, long) = (tunnel.clone(), peer.to_owned(), long.clone());
        async move {
            loop {
                if let Ok(mut stream) = tunnel.open(&peer, open()).await {
                    long.0.fetch_add(1, Ordering::Relaxed);
                    long.1.store(0, Ordering::Relaxed);
                    let mut byte = [0];
                    while stream.write_all(b"x").await.is_ok()
                        && stream.flush().await.is_ok()
                        && stream.read_exact(&mut byte).await.is_ok()
                    {
                        long.1.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    });
    let millis = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    while !registry.join("end.now").exists() {
        let began = SystemTime::now();
        let round = async {
            let mut stream = tunnel.open(peer, open()).await.ok()?;
            let path = stream.path();
            stream.write_all(b"x").await.ok()?;
            stream.flush().await.ok()?;
            stream.read_exact(&mut [0]).await.ok()?;
            Some(format!("{}|{}", path.kind.as_str(), path.transport.as_str()))
        };
        let path = tokio::time::timeout(Duration::from_secs(3), round).await.ok().flatten();
        let (streams, bytes) = (long.0.load(Ordering::Relaxed), long.1.load(Ordering::Relaxed));
        let path = path.unwrap_or_else(|| "-".to_owned());
        writeln!(out, "{} {} {path} {streams} {bytes}", millis(began), millis(SystemTime::now())).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    keeper.abort();
}
