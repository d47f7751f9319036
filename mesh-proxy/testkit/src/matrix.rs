//! Which pairs of NATs reach each other, how, and how fast: every kind against every kind, with the real programs.
//!
//! One world for each transport. Each kind of router stands in it twice: a node with a client behind the first, a node
//! with a server behind the second, so that every cell of the matrix is a pair of nodes that nothing else connects.
//! Transports are forced by the routers (no UDP, or no TCP but the controller's), not by settings of the programs.

mod busy;
mod cells;
mod layout;
mod paths;
mod report;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};

pub use cells::{Cell, run_cells};
pub use layout::{MatrixKind, Transport, up};
pub use paths::{PathView, Paths};
pub use report::Summary;

/// Every NAT kind against every NAT kind: the path that a pair of nodes ends on, and how fast.
#[derive(Clone, Debug, Parser)]
#[command(name = "nat-matrix", version)]
pub struct Args {
    /// Kinds of routers, all when absent
    #[arg(long, value_delimiter = ',', value_enum)]
    pub kinds: Vec<MatrixKind>,
    /// Transports, both when absent
    #[arg(long, value_delimiter = ',', value_enum)]
    pub transports: Vec<Transport>,
    /// Only these cells: `CLIENT:SERVER`
    #[arg(long, value_delimiter = ',')]
    pub cells: Vec<String>,
    /// Pairs that are measured at the same time
    #[arg(long, default_value_t = 2)]
    pub parallel: usize,
    /// Times that all time limits are longer: for a busy machine
    #[arg(long, default_value_t = 1.0)]
    pub slack: f64,
    /// Seconds that a pair gets to leave the relay
    #[arg(long, default_value_t = 15)]
    pub patience: u64,
    /// Do not restart proxies to measure calls with nothing known
    #[arg(long)]
    pub no_cold: bool,
    /// Use a user namespace even as root
    #[arg(long)]
    pub unprivileged: bool,
    /// Level of the proxies' logs, `info,mesh_tunnel=debug` for one
    #[arg(long)]
    pub log_level: Option<String>,
    /// Folder for the logs of a world in which a cell failed or needed a second punch
    #[arg(long)]
    pub logs: Option<PathBuf>,
    /// `json` for programs
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Form of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A line for each cell, and a summary.
    Text,
    /// One document on standard output.
    Json,
}

impl Args {
    /// The kinds asked for.
    #[must_use]
    pub fn chosen_kinds(&self) -> Vec<MatrixKind> {
        if self.kinds.is_empty() { MatrixKind::value_variants().to_vec() } else { self.kinds.clone() }
    }

    fn chosen_transports(&self) -> Vec<Transport> {
        if self.transports.is_empty() {
            Transport::value_variants().to_vec()
        } else {
            self.transports.clone()
        }
    }
}

/// Runs the matrix; true when every cell is as expected.
///
/// # Errors
/// When a world or a part of the mesh does not come up at all.
pub fn run(args: &Args) -> anyhow::Result<bool> {
    let start = Instant::now();
    let mut summary = Summary::default();
    for transport in args.chosen_transports() {
        if args.output == Output::Text {
            println!("\n{}: bringing up the world", transport.as_str());
        }
        let mut mesh = up(args, transport)?;
        let cells = run_cells(args, transport, &mut mesh, |cell| {
            if args.output == Output::Text {
                println!("{}", cell.line());
            }
        })?;
        if let Some(folder) = &args.logs
            && cells.iter().any(|c| !c.ok() || c.attempts > Some(1))
        {
            keep_logs(&mesh.world.dir().join("logs"), &folder.join(transport.as_str()))?;
        }
        summary.add(args, transport, cells);
        if args.cells.is_empty() {
            summary.skip(&args.chosen_kinds(), transport);
        }
    }
    let took = start.elapsed();
    match args.output {
        Output::Json => println!("{:#}", summary.json(took)),
        Output::Text => summary.print(took),
    }
    Ok(summary.failed() == 0)
}

/// Copies what the programs of a world have said.
fn keep_logs(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// A limit, stretched, in milliseconds.
fn limit(args: &Args, duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3 * args.slack.max(1.0)
}

/// What a call may take when a relay is known, and when the proxy has just started.
pub const FIRST_BYTE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// What half of the upgrades may take.
pub const UPGRADE: Duration = Duration::from_secs(3);
