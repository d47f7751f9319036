//! Datagrams across the tunnel, through the real proxies of two nodes: very many sessions one after the other, after
//! which nothing may be left, and questions at a fixed rate.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use mesh_testkit::mesh::{Mesh, manifest, metric};

use crate::{
    process::rss_mib,
    report::{FILES, P50, P99, RPS, RSS, Report, SESSIONS, STREAMS},
    shaped::two_nodes,
};

/// Sessions of a whole run, and of a look.
const COUNT: [usize; 2] = [100_000, 10_000];
/// How often the proxies are looked at meanwhile.
const PARTS: usize = 5;
/// Clients, each with one session at a time.
const CLIENTS: usize = 16;
/// Ports of each client: a session's port comes again long after its end.
const PORTS: usize = 3_000;
const FIRST_PORT: usize = 10_000;
const DNS: u16 = 53;
/// Questions a second, and for how long.
const QUESTIONS: &str = "1000";
const SECONDS: &str = "10";
/// A part of the sessions must be over after this.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the suite.
pub(crate) fn measure(quick: bool, report: &mut Report) -> Result<()> {
    let mesh =
        two_nodes("udp", &["--udp", "53", "--tcp", "53"], &[("dns", DNS, "UDP"), ("dns-tcp", DNS, "TCP")])?;
    let to = format!("{}:{DNS}", manifest::vip("default", "server"));
    let began = Instant::now();
    while let Err(error) = sessions(&mesh, &to, 200, 0) {
        // The proxies learn of the service a moment after they are ready.
        if began.elapsed() > LIMIT / 4 {
            return Err(error.context("the first sessions"));
        }
    }
    let count = COUNT[usize::from(quick)];
    look(&mesh, "sessions-000000", report)?;
    let began = Instant::now();
    for part in 1..=PARTS {
        let each = count / PARTS;
        sessions(&mesh, &to, each, part * each)?;
        eprintln!("bench: udp: {} sessions after {:.1} s", part * each, began.elapsed().as_secs_f64());
        look(&mesh, &format!("sessions-{:06}", part * each), report)?;
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    report.add(["udp", &format!("sessions-{count:06}"), "mesh-tunnel"], RPS, 0, rate, None);
    std::thread::sleep(Duration::from_secs(4));
    look(&mesh, "sessions-after", report)?;

    let args = ["--duration", SECONDS, "--rate", QUESTIONS, "-c", "32", "--timeout", "5"];
    let asked = mesh.call("client", "udp://server:53", &args).map_err(anyhow::Error::msg)?;
    let scenario = format!("dns-{QUESTIONS}");
    let place = ["udp", &scenario, "mesh-tunnel"];
    report.add(place, RPS, 0, asked.sent as f64 / asked.seconds, None);
    report.add(place, P50, 0, asked.latency_ms.p50 * 1000.0, None);
    report.add(place, P99, 0, asked.latency_ms.p99 * 1000.0, None);
    report.failed(&scenario, "mesh-tunnel", asked.failed);
    Ok(())
}

/// What the proxies hold now.
fn look(mesh: &Mesh, scenario: &str, report: &mut Report) -> Result<()> {
    for (node, side) in [("a", "outbound"), ("b", "inbound")] {
        let text = mesh.metrics(node).map_err(anyhow::Error::msg)?;
        let pid = mesh.procs.get(node).context("a proxy")?.pid()?;
        let subject = format!("mesh-proxy-{node}");
        let place = ["udp", scenario, subject.as_str()];
        let pid = u32::try_from(pid)?;
        report.add(place, RSS, 0, rss_mib(&[pid]), None);
        report.add(place, FILES, 0, fs::read_dir(format!("/proc/{pid}/fd"))?.count() as f64, None);
        report.add(place, STREAMS, 0, metric(&text, "selvage_tunnel_streams", &[]), None);
        let label = format!("side=\"{side}\"");
        report.add(place, SESSIONS, 0, metric(&text, "selvage_udp_sessions", &[&label]), None);
    }
    Ok(())
}

fn sessions(mesh: &Mesh, to: &str, count: usize, first: usize) -> Result<()> {
    let program = std::env::current_exe()?.display().to_string();
    let argv = [program, "sessions".to_owned(), to.to_owned(), count.to_string(), first.to_string()];
    let done = mesh.world.place("client")?.exec_within(&argv, LIMIT)?;
    if done.code != 0 {
        bail!("sessions: {}", done.stderr.trim());
    }
    Ok(())
}

/// `count` sessions one after the other at each of some clients: a socket of its own, a question, its answer.
pub(crate) fn run(to: SocketAddr, count: usize, first: usize) -> Result<()> {
    let each = count.div_ceil(CLIENTS);
    let clients = (0..CLIENTS).map(|client| {
        std::thread::spawn(move || -> Result<()> {
            for i in 0..each {
                let port = FIRST_PORT + client * PORTS + (first / CLIENTS + i) % PORTS;
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, u16::try_from(port)?))?;
                socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                socket.connect(to)?;
                let question = (i as u64).to_be_bytes();
                socket.send(&question)?;
                let mut answer = [0; 2048];
                socket.recv(&mut answer).with_context(|| format!("session {i} of client {client}"))?;
            }
            Ok(())
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    Ok(())
}
