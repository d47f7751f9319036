//! Bulk over lines that are no loopback: a world of the lab with two nodes and a relay, whose line has a rate, a length
//! and losses. Each path of the tunnel runs in turns with plain TCP between the same two nodes.
//!
//! ```text
//! client pod ─► proxy a ═══════ tunnel ═══════► proxy b ─► server pod          mesh-tunnel-tcp, -quic
//! client pod ─► proxy a ═══► relay r ═════════► proxy b ─► server pod          mesh-tunnel-relayed
//! node a ─────────────── TCP of the kernel ──────────────► node b              direct
//! ```

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use mesh_testkit::{
    lab::{Proc, Spec},
    matrix::{PathView, Paths},
    mesh::{App, Mesh, Plan, manifest},
};

use crate::report::{BUSY, RATE, Report, SHARE, TIMES, TRANSFER};

const PORT: u16 = 9000;
const MIB: u64 = 1 << 20;
/// One transfer may take so long.
const LIMIT: Duration = Duration::from_secs(60);
/// Before the first transfer over a line.
const WARM: Duration = Duration::from_secs(5);
/// A path must be as wanted after this.
const PATH_LIMIT: Duration = Duration::from_secs(60);

/// The line of the node `b`, each way.
struct Line {
    name: &'static str,
    kbit: u32,
    /// How long a packet may wait for its turn.
    queue_ms: u32,
    delay_ms: u32,
    loss: f64,
    /// Bytes of one transfer.
    bytes: u64,
    /// Transfers of each subject in a whole run.
    rounds: usize,
}

const LINES: [Line; 2] = [
    Line {
        name: "1gbit-4mib",
        kbit: 1_000_000,
        queue_ms: 20,
        delay_ms: 0,
        loss: 0.0,
        bytes: 4 * MIB,
        rounds: 15,
    },
    Line {
        name: "100mbit-30ms-loss",
        kbit: 100_000,
        queue_ms: 100,
        delay_ms: 15,
        loss: 0.5,
        bytes: 64 * MIB,
        rounds: 3,
    },
];

/// The line of `b` becomes another one every second under a transfer: a station that changes between two networks.
const CHANGING: &str = "changing";
const CHANGES: [Line; 2] = [
    Line { name: CHANGING, kbit: 200_000, queue_ms: 50, delay_ms: 0, loss: 0.0, bytes: 48 * MIB, rounds: 5 },
    Line { name: CHANGING, kbit: 50_000, queue_ms: 100, delay_ms: 15, loss: 0.5, bytes: 48 * MIB, rounds: 5 },
];
const CHANGE_EVERY: Duration = Duration::from_secs(1);

/// How the tunnel is made to run.
#[derive(Clone, Copy)]
enum Way {
    Tcp,
    Quic,
    Relayed,
}

impl Way {
    const ALL: [Self; 3] = [Self::Tcp, Self::Quic, Self::Relayed];

    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "mesh-tunnel-tcp",
            Self::Quic => "mesh-tunnel-quic",
            Self::Relayed => "mesh-tunnel-relayed",
        }
    }

    fn is(self, path: &PathView) -> bool {
        match self {
            Self::Tcp => path.path != "relayed" && path.transport == "tcp",
            Self::Quic => path.path != "relayed" && path.transport == "quic",
            Self::Relayed => path.path == "relayed",
        }
    }
}

/// Runs the suite.
pub(crate) fn measure(
    rounds: Option<usize>,
    wanted: impl Fn(&str) -> bool,
    subject: impl Fn(&str) -> bool,
    report: &mut Report,
) -> Result<()> {
    let world = Shaped::up()?;
    // A path that has become worse takes long to better itself, so each is taken once, in falling order.
    for (turn, way) in Way::ALL.into_iter().enumerate().filter(|(_, way)| subject(way.name())) {
        world.ease()?;
        world.take(way).with_context(|| way.name().to_owned())?;
        for line in LINES.iter().filter(|l| wanted(l.name)) {
            world.shape(line)?;
            world.anew(way)?;
            world.warm();
            for round in 0..rounds.unwrap_or(line.rounds) {
                let (direct, direct_carried) = world.carried(|w| w.direct(line))?;
                let (ours, carried) = world.carried(|w| w.tunnelled(line))?;
                let [direct, ours] = [direct, ours].map(|t| t.as_secs_f64());
                eprintln!(
                    "bench: {} {}: {:.0} ms, direct TCP {:.0} ms",
                    line.name,
                    way.name(),
                    ours * 1000.0,
                    direct * 1000.0
                );
                let round = turn * 100 + round;
                report.add(["shaped", line.name, way.name()], TIMES, round, ours / direct, None);
                for (subject, took, carried) in
                    [(way.name(), ours, carried), ("direct", direct, direct_carried)]
                {
                    let place = ["shaped", line.name, subject];
                    let rate = line.bytes as f64 * 8e-6 / took;
                    let busy = carried as f64 * 0.8 / f64::from(line.kbit) / took;
                    report.add(place, BUSY, round, busy, None);
                    report.add(place, TRANSFER, round, took * 1000.0, None);
                    report.add(place, RATE, round, rate, None);
                    report.add(place, SHARE, round, rate * 100_000.0 / f64::from(line.kbit), None);
                }
            }
        }
        if wanted(CHANGING) {
            for round in 0..rounds.unwrap_or(CHANGES[0].rounds) {
                world.changing(way, turn * 100 + round, report)?;
            }
        }
    }
    Ok(())
}

/// A mesh of two nodes and a relay on a segment: a pod `client` at `a`, a pod `server` at `b` with a service of its name.
pub(crate) fn two_nodes(name: &str, serve: &[&str], ports: &[(&str, u16, &str)]) -> Result<Mesh> {
    let pods = |n: u8| format!("10.1.{n}.0/24").parse().ok();
    let world = Spec::named(name)
        .node("cloud", None, None)
        .node("a", None, pods(1))
        .node("b", None, pods(2))
        .node("r", None, pods(3))
        .pod("client", "a")
        .pod("server", "b");
    let plan = Plan {
        world,
        controller: "cloud".to_owned(),
        apps: vec![App::new("server", "server", "v1", serve)],
        manifests: vec![manifest::service("server", "server", ports)],
        proxy_settings: vec!["tunnel.nat.upnp=false".to_owned(), "tunnel.nat.mdns=false".to_owned()],
        relays: vec!["r".to_owned()],
        ..Plan::default()
    };
    Mesh::up(&plan).map_err(|e| anyhow!("{}", e.full()))
}

struct Shaped {
    // Ended before the world.
    _sources: Vec<Proc>,
    mesh: Mesh,
}

impl Shaped {
    fn up() -> Result<Self> {
        let mesh = two_nodes("shaped", &["--tcp", "9001"], &[("tcp", PORT, "TCP")])?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["source", &format!("0.0.0.0:{PORT}")]);
        let mut sources = Vec::new();
        for place in [mesh.world.place("b")?, mesh.world.place("server")?] {
            let mut source = place.spawn("source", &command)?;
            source.wait_for_log("source ready", Duration::from_secs(10))?;
            sources.push(source);
        }
        Ok(Self { _sources: sources, mesh })
    }

    /// Ends the TCP connections that were made over another line: kernels remember its round trip for minutes.
    fn anew(&self, way: Way) -> Result<()> {
        let which = "( sport = :15008 or dport = :15008 )";
        for place in ["a", "b", "r"] {
            // Kernels that cannot say so, and go on with what they have.
            self.mesh.world.place(place)?.exec(&["ss", "-K", which])?;
        }
        self.take(way)
    }

    /// Until windows have grown.
    fn warm(&self) {
        let began = Instant::now();
        while began.elapsed() < WARM {
            // What is under way when the line becomes another one may fail.
            if let Err(error) = self.transfer("client", &self.service(), MIB) {
                eprintln!("bench: while the line settles: {error:#}");
            }
        }
    }

    /// One transfer over a line that changes. It has to be whole in the end.
    fn changing(&self, way: Way, round: usize, report: &mut Report) -> Result<()> {
        let bytes = CHANGES[0].bytes;
        let took = std::thread::scope(|scope| {
            let transfer = scope.spawn(|| self.transfer("client", &self.service(), bytes));
            let mut lines = CHANGES.iter().cycle();
            while !transfer.is_finished() {
                if let Some(line) = lines.next() {
                    self.shape(line)?;
                }
                std::thread::sleep(CHANGE_EVERY);
            }
            Ok::<_, anyhow::Error>(transfer.join().map_err(|_| anyhow!("the transfer's thread")))
        })??;
        match took {
            Ok(took) => {
                eprintln!("bench: {CHANGING} {}: {:.0} ms", way.name(), took.as_secs_f64() * 1e3);
                report.add(["shaped", CHANGING, way.name()], TRANSFER, round, took.as_secs_f64() * 1e3, None);
            }
            Err(error) => {
                eprintln!("bench: {CHANGING} {}: {error:#}", way.name());
                report.failed(CHANGING, way.name(), 1);
            }
        }
        Ok(())
    }

    fn ease(&self) -> Result<()> {
        self.mesh.world.heal()?;
        Ok(())
    }

    fn shape(&self, line: &Line) -> Result<()> {
        let world = &self.mesh.world;
        world.heal()?;
        world.rate("b", line.kbit, line.queue_ms)?;
        world.delay("b", line.delay_ms)?;
        world.loss("b", line.loss)?;
        Ok(())
    }

    /// Leaves the tunnel only this way from `a` to `b`.
    fn take(&self, way: Way) -> Result<()> {
        let nft = |script: &str| {
            for node in ["a", "b"] {
                let done = self.mesh.world.place(node)?.exec(&["nft", script])?;
                if done.code != 0 && !script.starts_with("delete") {
                    bail!("nft {script} on {node}: {}", done.stderr);
                }
            }
            Ok(())
        };
        nft("delete table inet bench")?;
        let other = self.mesh.world.place("b")?.address();
        let own = self.mesh.world.place("a")?.address();
        let blocked: &[&str] = match way {
            Way::Tcp => &["udp dport 15008"],
            Way::Quic => &["tcp dport 15008"],
            Way::Relayed => &["udp dport 15008", "tcp dport 15008"],
        };
        nft("add table inet bench")?;
        nft("add chain inet bench out { type filter hook output priority 0 ; }")?;
        for what in blocked {
            nft(&format!("add rule inet bench out ip daddr {{ {own}, {other} }} {what} drop"))?;
        }
        let (began, mut paths) = (Instant::now(), Paths::of(&self.mesh, "a"));
        loop {
            // A call makes the tunnel look for a path.
            let called = self.transfer("client", &self.service(), MIB);
            let path = paths.to("b");
            if called.is_ok() && path.as_ref().is_some_and(|p| way.is(p)) {
                return Ok(());
            }
            if began.elapsed() > PATH_LIMIT {
                bail!("the path did not come about: {called:?}, {path:?}");
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn service(&self) -> String {
        format!("{}:{PORT}", manifest::vip("default", "server"))
    }

    /// Bytes that the line has carried from the server's side since it was shaped, with all headers.
    fn sent(&self) -> Result<u64> {
        let place = self.mesh.world.place("b")?;
        let device = &place.info().uplink.as_ref().context("b has no link")?.device;
        let shown = place.exec(&["tc", "-s", "qdisc", "show", "dev", device, "root"])?;
        let mut words = shown.stdout.split_whitespace().skip_while(|w| *w != "Sent");
        words.nth(1).and_then(|n| n.parse().ok()).with_context(|| format!("what tc says: {}", shown.stdout))
    }

    fn carried(&self, what: impl FnOnce(&Self) -> Result<Duration>) -> Result<(Duration, u64)> {
        let before = self.sent()?;
        let took = what(self)?;
        Ok((took, self.sent()?.saturating_sub(before)))
    }

    fn direct(&self, line: &Line) -> Result<Duration> {
        let to = format!("{}:{PORT}", self.mesh.world.place("b")?.address());
        self.transfer("a", &to, line.bytes)
    }

    fn tunnelled(&self, line: &Line) -> Result<Duration> {
        self.transfer("client", &self.service(), line.bytes)
    }

    fn transfer(&self, from: &str, to: &str, bytes: u64) -> Result<Duration> {
        let program = std::env::current_exe()?.display().to_string();
        let argv = [program, "fetch".to_owned(), to.to_owned(), bytes.to_string()];
        let done = self.mesh.world.place(from)?.exec_within(&argv, LIMIT)?;
        if done.code != 0 {
            bail!("fetch at {from}: {}", done.stderr.trim());
        }
        let micros = done.stdout.trim().parse().context("what fetch says")?;
        // What is still under way must not be in the way of the next one.
        std::thread::sleep(Duration::from_millis(100));
        Ok(Duration::from_micros(micros))
    }
}

/// A server that sends as many bytes as it is asked for.
pub(crate) fn source(at: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(at)?;
    println!("source ready");
    let zeros = vec![0; 256 << 10];
    for stream in listener.incoming() {
        let (mut stream, zeros) = (stream?, zeros.clone());
        std::thread::spawn(move || -> std::io::Result<()> {
            let mut wanted = [0; 8];
            stream.read_exact(&mut wanted)?;
            let mut left = u64::from_be_bytes(wanted);
            while left > 0 {
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
                stream.write_all(&zeros[..n])?;
                left -= n as u64;
            }
            Ok(())
        });
    }
    Ok(())
}

/// Asks a source for bytes and prints the microseconds from the connect to the last byte.
pub(crate) fn fetch(from: SocketAddr, bytes: u64) -> Result<()> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&from, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(&bytes.to_be_bytes())?;
    let (mut got, mut room) = (0, vec![0; 256 << 10]);
    while got < bytes {
        match stream.read(&mut room)? {
            0 => bail!("{got} of {bytes} bytes came"),
            n => got += n as u64,
        }
    }
    println!("{}", began.elapsed().as_micros());
    Ok(())
}
