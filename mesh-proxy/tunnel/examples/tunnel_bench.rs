//! What the tunnel costs beside a bare relay, measured in one process on loopback.
//!
//! ```text
//! load thread ─► relay (worker threads) ─────────────────────────► load thread's echo     "copy"
//! load thread ─► relay ─► tunnel (workers a) ═► (workers b) relay ─► load thread's echo   "tunnel"
//! ```
//! CPU is that of the worker and control threads alone, from their schedstat. Usage:
//! `cargo run --profile bench-release -p mesh-tunnel --example tunnel_bench -- [SECONDS] [CONNECTIONS] [WORKERS]`
//! and `… -- bulk [SECONDS] [ROUNDS] [ONLY]` for one stream over each kind of path beside the same transport without a
//! tunnel: "of rate" compares what arrived, "of CPU" what it cost, and "of core" what the busiest party would do with a
//! core to itself, which is the figure to read where cores are shared.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measuring program: a failure ends it")]

#[path = "parts/bulk.rs"]
mod bulk;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mesh_api::model::TunnelOpen;
use mesh_tunnel::{Acceptor, Executors, NodeKey, Peer, Tunnel, TunnelConfig};
use prometheus::Registry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Handle},
    sync::oneshot,
    task::{LocalSet, spawn_local},
};

const BUFFER: usize = 64 * 1024;

/// A thread with a current-thread runtime, as a data worker is.
fn worker(name: &str) -> (Handle, tokio::sync::mpsc::Sender<Job>) {
    let (sender, mut jobs) = tokio::sync::mpsc::channel::<Job>(64);
    let (handle_sender, handle) = std::sync::mpsc::sync_channel(1);
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            handle_sender.send(runtime.handle().clone()).unwrap();
            LocalSet::new().block_on(&runtime, async move {
                while let Some(job) = jobs.recv().await {
                    job();
                }
            });
        })
        .unwrap();
    (handle.recv().unwrap(), sender)
}

type Job = Box<dyn FnOnce() + Send>;

/// Keeps a worker on one core.
fn pin(worker: &(Handle, tokio::sync::mpsc::Sender<Job>), core: usize) {
    let stay = move || {
        let mut set = nix::sched::CpuSet::new();
        let this = nix::unistd::Pid::from_raw(0);
        if let Err(error) = set.set(core).and_then(|()| nix::sched::sched_setaffinity(this, &set)) {
            eprintln!("not pinned to core {core}: {error}");
        }
    };
    worker.1.try_send(Box::new(stay)).ok().unwrap();
}

type WorkerPool = Vec<(Handle, tokio::sync::mpsc::Sender<Job>)>;

/// CPU seconds of threads whose name begins so.
fn cpu(prefixes: &[&str]) -> f64 {
    let mut total = 0.0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if prefixes.iter().any(|p| name.starts_with(p)) {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            total += stat.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e9;
        }
    }
    total
}

#[derive(Clone)]
enum To {
    Direct(SocketAddr),
    Through(Tunnel),
}

/// Listens on each worker; every connection is relayed.
async fn relay(workers: &WorkerPool, to: To) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for (_, jobs) in workers {
        let (sender, address) = oneshot::channel();
        let to = to.clone();
        jobs.send(Box::new(move || {
            spawn_local(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                loop {
                    let (mut client, _) = listener.accept().await.unwrap();
                    client.set_nodelay(true).unwrap();
                    let to = to.clone();
                    spawn_local(async move {
                        match to {
                            To::Direct(address) => {
                                let mut pod = TcpStream::connect(address).await.unwrap();
                                pod.set_nodelay(true).unwrap();
                                let _ = copy_bidirectional_with_sizes(&mut client, &mut pod, BUFFER, BUFFER)
                                    .await;
                            }
                            To::Through(tunnel) => {
                                let open =
                                    TunnelOpen { address: "10.0.0.1".into(), port: 80, ..Default::default() };
                                let mut stream = tunnel.open("b", open).await.unwrap();
                                let _ =
                                    copy_bidirectional_with_sizes(&mut client, &mut stream, BUFFER, BUFFER)
                                        .await;
                            }
                        }
                    });
                }
            });
        }))
        .await
        .ok()
        .unwrap();
        addresses.push(address.await.unwrap());
    }
    addresses
}

async fn inbound(workers: &WorkerPool, acceptors: Vec<Acceptor>, pod: SocketAddr) {
    for ((_, jobs), mut acceptor) in workers.iter().zip(acceptors) {
        jobs.send(Box::new(move || {
            spawn_local(async move {
                while let Some(incoming) = acceptor.accept().await {
                    spawn_local(async move {
                        let mut pod = TcpStream::connect(pod).await.unwrap();
                        pod.set_nodelay(true).unwrap();
                        let mut stream = incoming.accept().await.unwrap();
                        let _ = copy_bidirectional_with_sizes(&mut stream, &mut pod, BUFFER, BUFFER).await;
                    });
                }
            });
        }))
        .await
        .ok()
        .unwrap();
    }
}

/// Answers 1 KiB for each 1 KiB; a first byte of 1 asks for bulk instead.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    Handle::current().spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            Handle::current().spawn(async move {
                let mut buffer = vec![0; 1024];
                let block = vec![0; 256 * 1024];
                while socket.read_exact(&mut buffer).await.is_ok() {
                    if buffer[0] == 1 {
                        while socket.write_all(&block).await.is_ok() {}
                        return;
                    }
                    if socket.write_all(&buffer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

struct Load {
    count: AtomicU64,
    stop: AtomicBool,
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    KeepAlive,
    NewConnections,
    Bulk,
}

async fn drive(at: SocketAddr, load: Arc<Load>, shape: Shape) {
    let mut request = vec![0; 1024];
    let mut buffer = vec![0; 256 * 1024];
    'connect: while !load.stop.load(Ordering::Relaxed) {
        let mut socket = TcpStream::connect(at).await.unwrap();
        socket.set_nodelay(true).unwrap();
        request[0] = u8::from(shape == Shape::Bulk);
        while !load.stop.load(Ordering::Relaxed) {
            if shape != Shape::Bulk || request[0] == 1 {
                socket.write_all(&request).await.unwrap();
            }
            if shape == Shape::Bulk {
                request[0] = 2;
                let n = socket.read(&mut buffer).await.unwrap();
                load.count.fetch_add(n as u64, Ordering::Relaxed);
                continue;
            }
            socket.read_exact(&mut buffer[..1024]).await.unwrap();
            load.count.fetch_add(1, Ordering::Relaxed);
            if shape == Shape::NewConnections {
                continue 'connect;
            }
        }
    }
}

async fn measure(name: &str, shape: Shape, addresses: &[SocketAddr], connections: usize, time: Duration) {
    let load = Arc::new(Load { count: AtomicU64::new(0), stop: AtomicBool::new(false) });
    let tasks: Vec<_> = (0..connections)
        .map(|i| Handle::current().spawn(drive(addresses[i % addresses.len()], load.clone(), shape)))
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (before, began, cpu_before) =
        (load.count.load(Ordering::Relaxed), Instant::now(), cpu(&["w", "ctl"]));
    tokio::time::sleep(time).await;
    let (count, seconds) = (load.count.load(Ordering::Relaxed) - before, began.elapsed().as_secs_f64());
    let spent = cpu(&["w", "ctl"]) - cpu_before;
    load.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        let _ = tokio::time::timeout(Duration::from_secs(1), task).await;
    }
    let count = count as f64;
    if shape == Shape::Bulk {
        let gib = count / f64::from(1 << 30);
        println!("{name:<28} {:>9.0} MiB/s   {:>7.2} CPU-s/GiB", gib * 1024.0 / seconds, spent / gib);
    } else {
        println!("{name:<28} {:>9.0} /s      {:>7.2} CPU-s/100k", count / seconds, spent / count * 1e5);
    }
}

async fn tunnels(kind: &str, a: &WorkerPool, b: &WorkerPool, pod: SocketAddr) -> (Tunnel, Tunnel) {
    let start = |workers: &WorkerPool| {
        let executors =
            Executors { control: Handle::current(), workers: workers.iter().map(|w| w.0.clone()).collect() };
        let mut config = TunnelConfig::new(NodeKey::generate(), 0);
        config.listen =
            vec![if kind == "tcp" { "/ip4/127.0.0.1/tcp/0" } else { "/ip4/127.0.0.1/udp/0/quic-v1" }.into()];
        async move { Tunnel::start(config, executors, &Registry::new()).await.unwrap() }
    };
    let (near, _) = start(a).await;
    let (far, acceptors) = start(b).await;
    let peer = |node: &str, t: &Tunnel| Peer {
        node: node.into(),
        peer_id: t.peer_id(),
        addresses: t.addresses().borrow().clone(),
        ..Default::default()
    };
    near.set_peers(&[peer("b", &far)]).await;
    far.set_peers(&[peer("a", &near)]).await;
    inbound(b, acceptors, pod).await;
    (near, far)
}

fn main() {
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let time = Duration::from_secs(args.first().copied().unwrap_or(3) as u64);
    let connections = args.get(1).copied().unwrap_or(16);
    let count = args.get(2).copied().unwrap_or(2);
    let pool = |name: &str| (0..count).map(|i| worker(&format!("{name}-{i}"))).collect::<WorkerPool>();
    let (c, a, b) = (pool("wc"), pool("wa"), pool("wb"));
    let control =
        Builder::new_multi_thread().worker_threads(1).thread_name("ctl").enable_all().build().unwrap();
    let load =
        Builder::new_multi_thread().worker_threads(2).thread_name("load").enable_all().build().unwrap();
    if std::env::args().any(|a| a == "bulk") {
        let relay = pool("wr");
        let rounds = args.get(1).copied().unwrap_or(5);
        // Sender and receiver have a core each, as far as there are two.
        for (core, pool) in [&a, &b].into_iter().enumerate() {
            pool.iter().for_each(|worker| pin(worker, core));
        }
        let only = std::env::args().skip(2).find(|a| a.parse::<usize>().is_err());
        return control.block_on(bulk::table([&a, &b, &relay], (rounds, time), only));
    }
    load.block_on(async {
        let pod = echo().await;
        let plain = relay(&c, To::Direct(pod)).await;
        let mut targets = vec![("copy", plain)];
        for kind in ["tcp", "quic"] {
            let _context = control.enter();
            let (a, b) = (&a, &b);
            let (near, far) = control.block_on_here(async move { tunnels(kind, a, b, pod).await });
            targets.push((
                if kind == "tcp" { "tunnel-tcp" } else { "tunnel-quic" },
                relay(a, To::Through(near)).await,
            ));
            std::mem::forget(far);
        }
        for round in 0..2 {
            println!("round {round}: {connections} connections, {count} workers");
            for (name, at) in &targets {
                measure(&format!("keep-alive 1 KiB {name}"), Shape::KeepAlive, at, connections, time).await;
            }
            for (name, at) in &targets {
                measure(&format!("new connections {name}"), Shape::NewConnections, at, connections, time)
                    .await;
            }
            for (name, at) in &targets {
                measure(&format!("bulk, 1 stream {name}"), Shape::Bulk, at, 1, time).await;
            }
        }
    });
}

/// Runs a future on another runtime and waits for it from within a first one.
trait BlockOnHere {
    fn block_on_here<F>(&self, future: F) -> F::Output
    where
        F: Future + Send,
        F::Output: Send;
}

impl BlockOnHere for tokio::runtime::Runtime {
    fn block_on_here<F>(&self, future: F) -> F::Output
    where
        F: Future + Send,
        F::Output: Send,
    {
        thread::scope(|s| s.spawn(|| self.block_on(future)).join().unwrap())
    }
}
