//! The measurement of each cell: a first call, the path that it took, and the path that it came to.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    Args, FIRST_BYTE, MatrixKind, Transport, busy,
    layout::Expected,
    limit,
    paths::{PathView, Paths},
};
use crate::mesh::Mesh;

/// What a pair came to.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// What the client is behind.
    pub from: MatrixKind,
    /// What the server is behind.
    pub to: MatrixKind,
    /// What carried the tunnel.
    pub transport: Transport,
    /// The path it should end on.
    pub expected: Expected,
    /// The path it ended on; empty when there was none.
    pub reached: String,
    /// The path of the first call.
    pub began: String,
    /// What carries the path that it ended on.
    pub via: String,
    /// The first call with relays known, to its answer.
    pub first_byte_ms: Option<f64>,
    /// The first call of a proxy that has just started; only some cells have one.
    pub cold_ms: Option<f64>,
    /// From the first answer to the better path.
    pub upgrade_ms: Option<f64>,
    /// Punches that it took.
    pub attempts: Option<u64>,
    /// How many times slower than an idle machine this one was during the first call.
    pub busy: f64,
    /// What is wrong; empty when all is as expected.
    pub problems: Vec<String>,
    /// What the proxy says of the path.
    pub why: String,
}

impl Cell {
    fn new(from: MatrixKind, to: MatrixKind, transport: Transport) -> Self {
        Self {
            from,
            to,
            transport,
            expected: from.expected(to),
            reached: String::new(),
            began: String::new(),
            via: String::new(),
            first_byte_ms: None,
            cold_ms: None,
            upgrade_ms: None,
            attempts: None,
            busy: 1.0,
            problems: Vec::new(),
            why: String::new(),
        }
    }

    /// Whether all is as expected.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.problems.is_empty()
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let ms = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.0} ms"));
        let reached = if self.reached.is_empty() { "nothing" } else { &self.reached };
        format!(
            "{} {:>4} {:>18} → {:<18} expected {:<14} reached {:<8} {:<4} first byte {:>8}, upgrade {:>8}, punches {}{}",
            if self.ok() { "ok    " } else { "FAILED" },
            self.transport.as_str(),
            self.from.as_str(),
            self.to.as_str(),
            self.expected.as_str(),
            reached,
            self.via,
            ms(self.first_byte_ms),
            ms(self.upgrade_ms),
            self.attempts.map_or_else(|| "-".to_owned(), |n| n.to_string()),
            if self.ok() { String::new() } else { format!("  ({}; {})", self.problems.join("; "), self.why) },
        )
    }
}

/// How long a pair for which the relay is good enough gets to find something better.
const RELAYED_PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at a path.
const LOOK: Duration = Duration::from_millis(25);

/// Measures every cell that was asked for; `each` sees it when it is done.
///
/// # Errors
/// When a proxy cannot be restarted.
pub fn run_cells(
    args: &Args,
    transport: Transport,
    mesh: &mut Mesh,
    mut each: impl FnMut(&Cell),
) -> anyhow::Result<Vec<Cell>> {
    let kinds: Vec<MatrixKind> =
        args.chosen_kinds().into_iter().filter(|k| k.skipped(transport).is_none()).collect();
    let chosen: BTreeSet<&String> = args.cells.iter().collect();
    let wanted = |a: MatrixKind, b: MatrixKind| {
        chosen.is_empty() || chosen.contains(&format!("{}:{}", a.as_str(), b.as_str()))
    };
    wait_until_known(mesh, &kinds);
    let mut done = Vec::new();
    // Each round is a diagonal: no node is in two pairs of it.
    for round in 0..kinds.len() {
        let pairs: Vec<(MatrixKind, MatrixKind)> = (kinds.iter().enumerate())
            .map(|(i, a)| (*a, kinds[(i + round) % kinds.len()]))
            .filter(|(a, b)| wanted(*a, *b))
            .collect();
        for some in pairs.chunks(args.parallel.max(1)) {
            let cells = together(some, |(a, b)| warm(args, mesh, Cell::new(*a, *b, transport)));
            for cell in cells {
                each(&cell);
                done.push(cell);
            }
        }
    }
    if !args.no_cold {
        cold(args, mesh, &mut done)?;
    }
    Ok(done)
}

fn together<T: Sync, R: Send>(all: &[T], one: impl Fn(&T) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|item| scope.spawn(|| one(item))).collect();
        threads.into_iter().filter_map(|t| t.join().ok()).collect()
    })
}

/// Ready is not yet connected: nodes reserve at the relay in the background, and tell the registry.
fn wait_until_known(mesh: &Mesh, kinds: &[MatrixKind]) {
    let deadline = Instant::now() + Duration::from_secs(15);
    for kind in kinds.iter().filter(|k| **k != MatrixKind::None) {
        for node in [kind.client_node(), kind.server_node()] {
            let mut paths = Paths::of(mesh, &node);
            while paths.to(super::layout::RELAY).is_none() && Instant::now() < deadline {
                std::thread::sleep(4 * LOOK);
            }
        }
    }
    // The registry hands addresses through the relay on to everyone.
    std::thread::sleep(Duration::from_secs(1));
}

fn url(to: MatrixKind) -> String {
    format!("http://{}:8080/", to.service())
}

/// One call by the client; the milliseconds to its answer.
fn call(mesh: &Mesh, from: MatrixKind, to: MatrixKind) -> Result<f64, String> {
    let report = mesh.call(&from.client(), &url(to), &["--timeout", "15"]).map_err(|e| e.full())?;
    match report.by_status.contains_key(&200) && report.failed == 0 {
        true => Ok(report.latency_ms.max),
        false => {
            // Why, in the words of the one who knows.
            let log = mesh.procs.get(&from.client_node()).map(crate::lab::Proc::log).unwrap_or_default();
            let odd: Vec<&str> = log.lines().filter(|l| !l.contains(" INFO ")).collect();
            let odd = odd[odd.len().saturating_sub(6)..].join("\n  ");
            eprintln!("{} → {}: {:?}\n  {odd}", from.as_str(), to.as_str(), report.errors);
            let (status, ms) = (&report.by_status, report.latency_ms.max);
            Err(format!("the call failed after {ms:.0} ms: {status:?} {:?}", report.errors))
        }
    }
}

fn warm(args: &Args, mesh: &Mesh, mut cell: Cell) -> Cell {
    let (from, to) = (cell.from, cell.to);
    let mut paths = Paths::of(mesh, &from.client_node());
    let peer = to.server_node();
    // Opens the connection to the admin pages before the clock runs.
    paths.to(&peer);
    let (first, busy) = busy::while_doing(|| call(mesh, from, to));
    cell.busy = busy;
    match first {
        Ok(ms) => cell.first_byte_ms = Some(ms),
        Err(why) => {
            cell.problems.push(why);
            return cell;
        }
    }
    let answered = Instant::now();
    let relayed = cell.expected == Expected::Relayed;
    let patience = if relayed { RELAYED_PATIENCE } else { Duration::from_secs(args.patience) };
    let mut last = PathView::default();
    loop {
        if let Some(now) = paths.to(&peer) {
            if cell.began.is_empty() {
                cell.began.clone_from(&now.path);
            }
            last = now;
            if !matches!(last.path.as_str(), "" | "relayed") {
                cell.upgrade_ms = (cell.began == "relayed").then(|| answered.elapsed().as_secs_f64() * 1e3);
                break;
            }
        }
        if answered.elapsed() > patience {
            break;
        }
        std::thread::sleep(LOOK);
    }
    // Punches are counted a moment after the path that they open.
    let settled = Instant::now() + Duration::from_secs(1);
    while last.path == "punched" && last.attempts.is_none() && Instant::now() < settled {
        std::thread::sleep(LOOK);
        last = paths.to(&peer).unwrap_or(last);
    }
    judge(args, &mut cell, last);
    // On the path that it ended on, calls go on.
    if let Err(why) = call(mesh, from, to) {
        cell.problems.push(format!("after the upgrade {why}"));
    }
    cell
}

fn judge(args: &Args, cell: &mut Cell, last: PathView) {
    cell.attempts = last.attempts;
    (cell.reached, cell.via, cell.why) = (last.path, last.transport, last.why);
    if !cell.expected.is_met(&cell.reached) {
        let outcome = last.outcome.unwrap_or_else(|| "none".to_owned());
        cell.problems.push(format!("should be {}; last punch: {outcome}", cell.expected.as_str()));
    }
    let limit = limit(args, FIRST_BYTE[0]) * cell.busy;
    if cell.first_byte_ms.is_some_and(|ms| ms > limit) {
        cell.problems.push(format!("the first byte took more than {limit:.0} ms"));
    }
}

/// Restarts every client's proxy, and calls as soon as it is ready: nothing is known but its snapshot.
fn cold(args: &Args, mesh: &mut Mesh, cells: &mut [Cell]) -> anyhow::Result<()> {
    // One call for each client: after the first one its proxy is no longer cold. Another server for each.
    let mut firsts: BTreeMap<MatrixKind, usize> = BTreeMap::new();
    for (i, cell) in cells.iter().enumerate() {
        let shift = firsts.len();
        let count = cells.iter().filter(|c| c.from == cell.from).count();
        let nth = cells[..i].iter().filter(|c| c.from == cell.from).count();
        if !firsts.contains_key(&cell.from) && nth == shift % count.max(1) {
            firsts.insert(cell.from, i);
        }
    }
    let chosen: Vec<(MatrixKind, usize)> = firsts.into_iter().collect();
    for some in chosen.chunks(args.parallel.max(1)) {
        for (from, _) in some {
            let node = from.client_node();
            if let Some(mut proxy) = mesh.procs.remove(&node) {
                proxy.kill();
            }
            mesh.start_proxy(&node, None)?;
        }
        let times = {
            let mesh = &*mesh;
            together(some, |(from, i)| {
                mesh.until_ready(&from.client_node(), Duration::from_secs(20))
                    .map_err(|e| e.full())
                    .map(|()| busy::while_doing(|| call(mesh, *from, cells[*i].to)))
            })
        };
        let limit = limit(args, FIRST_BYTE[1]);
        for ((_, i), took) in some.iter().zip(times) {
            let cell = &mut cells[*i];
            match took {
                Ok((Ok(ms), busy)) => {
                    cell.cold_ms = Some(ms);
                    if ms > limit * busy {
                        cell.problems.push(format!("cold, the first byte took {ms:.0} ms"));
                    }
                }
                Ok((Err(why), _)) | Err(why) => cell.problems.push(format!("cold, {why}")),
            }
        }
    }
    Ok(())
}
