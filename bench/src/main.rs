//! Measures the mesh beside what people use today, in one closed network namespace on this machine. The method is in
//! `bench/README.md`.

mod backend;
mod budget;
mod control;
mod hollow;
mod load;
mod mesh;
mod peers;
mod process;
mod rate;
mod report;
mod scrape;
mod shaped;
mod stats;
mod subject;
mod suite;
mod udp;
mod world;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use report::Report;
use suite::{Effort, SCENARIOS, SUITES};

/// Idle is what is left when the programs are done with their start.
const SETTLE: Duration = Duration::from_secs(12);

/// Measures the mesh beside direct calls, a bare relay, haproxy, nginx and Envoy.
#[derive(Parser)]
struct Args {
    /// Only this suite: http, latency, connections, bulk, memory, binary, apply, control, hollow, shaped, udp, scrape.
    #[arg(long, env = "BENCH")]
    suite: Option<String>,
    /// Only scenarios whose name contains this.
    #[arg(long)]
    scenario: Option<String>,
    /// Only subjects whose name contains one of these (comma-separated); direct and the calibrator always run.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Fewer and shorter slices: a look, not a result.
    #[arg(long)]
    quick: bool,
    /// Rounds of each scenario.
    #[arg(long)]
    rounds: Option<usize>,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench/latest.json")]
    out: PathBuf,
    #[command(subcommand)]
    internal: Option<Internal>,
}

/// The bench's own programs, started by itself.
#[derive(Subcommand)]
enum Internal {
    /// The server behind all subjects.
    #[command(hide = true)]
    Backend { http: SocketAddr, bulk: SocketAddr },
    /// The calibrator: relays pairs FROM TO.
    #[command(hide = true)]
    Hollow {
        #[arg(long)]
        nodes: usize,
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        ready: SocketAddr,
    },
    #[command(hide = true)]
    Relay { addresses: Vec<SocketAddr> },
    /// Sends as many bytes as it is asked for.
    #[command(hide = true)]
    Source { at: SocketAddr },
    #[command(hide = true)]
    Fetch { from: SocketAddr, bytes: u64 },
    #[command(hide = true)]
    Sessions { to: SocketAddr, count: usize, first: usize },
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.internal {
        Some(Internal::Backend { http, bulk }) => serve(http, bulk),
        Some(Internal::Hollow { nodes, ref dir, ready }) => hollow::run(nodes, dir, ready),
        Some(Internal::Relay { ref addresses }) => relay(addresses),
        Some(Internal::Source { at }) => shaped::source(at),
        Some(Internal::Fetch { from, bytes }) => shaped::fetch(from, bytes),
        Some(Internal::Sessions { to, count, first }) => udp::run(to, count, first),
        None if !world::inside() => world::enter(),
        None => measure(&args),
    }
}

fn serve(http: SocketAddr, bulk: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, backend::serve(http, bulk))?)
}

/// Two workers that steal work: what `tokio::main` gives.
fn relay(addresses: &[SocketAddr]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut relays = tokio::task::JoinSet::new();
        for pair in addresses.chunks_exact(2) {
            relays.spawn(backend::relay(pair[0], pair[1]));
        }
        while let Some(ended) = relays.join_next().await {
            ended??;
        }
        Ok(())
    })
}

fn measure(args: &Args) -> Result<()> {
    if let Some(suite) = &args.suite
        && !SUITES.contains(&suite.as_str())
    {
        bail!("unknown suite {suite:?}; there are {}", SUITES.join(", "));
    }
    let wanted = |suite: &str| args.suite.as_deref().is_none_or(|s| s == suite);
    let mut effort = if args.quick {
        Effort { rounds: 3, slice: Duration::from_millis(700) }
    } else {
        Effort { rounds: 5, slice: Duration::from_millis(1500) }
    };
    effort.rounds = args.rounds.unwrap_or(effort.rounds);
    let mut report = Report::default();
    // Suites that make their own world need none of the subjects.
    let alone = args.suite.as_deref().is_some_and(|s| ["control", "hollow", "shaped", "udp"].contains(&s));
    let nobody = ["-".to_owned()];
    let only_mesh = ["mesh-proxy-l7".to_owned()];
    let mut world = world::World::build(match args.suite.as_deref() {
        _ if alone => &nobody,
        Some("scrape") => &only_mesh,
        _ => &args.subjects,
    })?;
    if wanted("binary") && args.scenario.is_none() {
        for group in &world.groups {
            if let Some(binary) = &group.binary {
                suite::binary(&group.name, binary, &mut report);
            }
        }
    }
    if wanted("memory") && args.scenario.is_none() {
        // Before any load: memory that a load leaves behind is not idle memory.
        std::thread::sleep(SETTLE);
        for group in &world.groups {
            suite::idle_memory(group, &mut report);
        }
        for group in &world.groups {
            eprintln!("bench: memory of {} with connections held", group.name);
            suite::held_memory(group, &mut report)?;
        }
    }
    for scenario in &SCENARIOS {
        let named = args.scenario.as_deref().is_none_or(|s| scenario.name.contains(s));
        let skipped = args.quick
            && ["keepalive-1", "keepalive-128"].contains(&scenario.name)
            && args.scenario.is_none();
        if wanted(scenario.suite) && named && !skipped {
            suite::run(scenario, &world.groups, effort, &mut report)?;
        }
    }
    if wanted("apply") && args.scenario.is_none() {
        world.apply_to_effect(effort.rounds, &mut report)?;
    }
    if wanted("control") && args.scenario.is_none() {
        control::measure(world.dir.path(), effort.rounds, &mut report)?;
    }
    if wanted("hollow") && args.scenario.is_none() {
        hollow::measure(world.dir.path(), args.quick, &mut report)?;
    }
    if wanted("shaped") {
        let named = |line: &str| args.scenario.as_deref().is_none_or(|s| line.contains(s));
        let subject = |name: &str| args.subjects.is_empty() || args.subjects.iter().any(|s| name.contains(s));
        let rounds = args.quick.then_some(2).or(args.rounds);
        shaped::measure(rounds, named, subject, &mut report)?;
    }
    if wanted("udp") && args.scenario.is_none() {
        udp::measure(args.quick, &mut report)?;
    }
    // Last of those with subjects: it leaves a thousand services called.
    if wanted("scrape") && args.scenario.is_none() {
        scrape::measure(&world, args.quick, &mut report)?;
    }
    world.stop();
    println!("{}{}", report.tables(), budget::check(&report));
    if let Some(dir) = args.out.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(&args.out, report.json()?).with_context(|| format!("write {}", args.out.display()))?;
    eprintln!("written: {}; failed requests: {}", args.out.display(), report.failures());
    Ok(())
}
