//! `meshctl services`, `routes` and `endpoints`: what one proxy has in force.
//!
//! - [`rows`]: the proxy's pages as what is shown. Pure.

mod rows;

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::{
    Outcome,
    args::{self, Force, Program as Kind},
    output,
    reach::{self, Mesh, Program},
};

/// Which hosts and ports are shown.
#[derive(Debug, Default)]
struct Wanted {
    part: String,
    service: Option<String>,
    port: Option<u64>,
}

impl Wanted {
    fn of(args: &Force) -> Self {
        Self {
            part: args.host.clone().unwrap_or_default(),
            service: args.service.clone(),
            port: args.port.map(u64::from),
        }
    }

    fn host(&self, host: &str) -> bool {
        // `reviews` is reviews.default.svc..., not reviews-old.
        let named = |s: &String| {
            host.strip_prefix(s.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        host.contains(&self.part) && self.service.as_ref().is_none_or(named)
    }

    fn port(&self, port: u64) -> bool {
        self.port.is_none_or(|wanted| wanted == port)
    }

    /// What the proxy itself can leave out.
    fn query(&self) -> String {
        let part =
            if self.part.is_empty() { self.service.as_deref().unwrap_or_default() } else { &self.part };
        format!("?host={}", crate::proxy::quoted(part))
    }
}

pub(crate) fn services(args: &Force) -> Result<Outcome> {
    let wanted = Wanted::of(args);
    let page = format!("/config_dump{}", wanted.query());
    let pages = ask(args, &[&page])?;
    show(args.look.output, &rows::services(&pages[0], &wanted), rows::SERVICES)
}

pub(crate) fn routes(args: &Force) -> Result<Outcome> {
    let wanted = Wanted::of(args);
    let page = format!("/config_dump{}", wanted.query());
    let pages = ask(args, &[&page])?;
    show(args.look.output, &rows::routes(&pages[0], &wanted), rows::ROUTES)
}

pub(crate) fn endpoints(args: &Force) -> Result<Outcome> {
    let wanted = Wanted::of(args);
    let (dump, clusters) =
        (format!("/config_dump{}", wanted.query()), format!("/clusters{}", wanted.query()));
    let pages = ask(args, &[&dump, &clusters, "/paths"])?;
    show(args.look.output, &rows::endpoints(&pages[0], &pages[1], &pages[2], &wanted), rows::ENDPOINTS)
}

/// A row that people see as cells.
trait Cells {
    fn cells(&self) -> Vec<String>;
}

fn show<T: Serialize + Cells>(output: args::Output, rows: &[T], head: &[&str]) -> Result<Outcome> {
    let table = || {
        let cells: Vec<Vec<String>> = rows.iter().map(Cells::cells).collect();
        output::table(head, &cells)
    };
    if rows.is_empty() && output.format == args::Format::Table {
        eprintln!("meshctl: nothing fits; without --host, --service and --port everything is shown");
        return Ok(Outcome::Fine);
    }
    output::print(output.format, &rows, table)?;
    Ok(Outcome::Fine)
}

/// Asks the proxy that is meant for these pages.
fn ask(args: &Force, pages: &[&str]) -> Result<Vec<Value>> {
    let reach = &args.look.reach;
    reach::within(reach.timeout, "what a proxy has in force", async {
        let mesh = Mesh::find(reach).await?;
        let program = chosen(&mesh, args.node.as_ref())?;
        let mut all = Vec::new();
        for page in pages {
            all.push(program.json(page).await?);
        }
        if args.node.is_none() && mesh.client.is_some() {
            eprintln!("meshctl: as {} sees it; --node NODE asks another one", program.title());
        }
        Ok(all)
    })
}

/// The proxy of that node; without a name a node's proxy that is ready.
fn chosen(mesh: &Mesh, node: Option<&String>) -> Result<Program> {
    if let Some(node) = node {
        let found = mesh.proxies(std::slice::from_ref(node))?;
        return found.into_iter().next().ok_or_else(|| mesh.nothing());
    }
    let all = mesh.proxies(&[])?;
    if all.is_empty() {
        if mesh.client.is_none() {
            bail!(
                "none of the addresses is a proxy's: name its admin page with --admin http://127.0.0.1:15000"
            );
        }
        return Err(mesh.nothing());
    }
    let ready = |p: &&Program| p.kind == Kind::Proxy && p.pod.as_ref().is_none_or(|pod| pod.ready);
    match all.iter().find(ready).or(all.first()) {
        Some(program) => Ok(program.clone()),
        None => Err(mesh.nothing()),
    }
}
