//! `meshctl top`: what goes on, from two looks at the metrics of each proxy.
//!
//! - [`sample`]: Prometheus' text form. Pure.
//! - [`rates`]: two looks as rows. Pure.

mod rates;
pub(crate) mod sample;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{
    Outcome,
    args::{self, By},
    output,
    reach::{self, Mesh},
};
use rates::{Look, Row};

pub(crate) fn run(args: &args::Top) -> Result<Outcome> {
    let limit = args.look.reach.timeout + args.interval;
    let (mut rows, failed) = reach::within(limit, "metrics of the mesh", async {
        let mesh = Mesh::find(&args.look.reach).await?;
        look_twice(&mesh, args).await
    })?;
    if args.rows > 0 {
        rows.truncate(args.rows);
    }
    output::print(args.look.output.format, &rows, || text(&rows, args.by))?;
    for failure in &failed {
        eprintln!("meshctl: {failure}");
    }
    Ok(if failed.is_empty() { Outcome::Fine } else { Outcome::Findings })
}

async fn look_twice(mesh: &Mesh, args: &args::Top) -> Result<(Vec<Row>, Vec<String>)> {
    let programs = mesh.proxies(&args.nodes)?;
    if programs.is_empty() {
        if mesh.client.is_none() {
            bail!(
                "none of the addresses is a proxy's: name its admin page with --admin http://127.0.0.1:15000"
            );
        }
        return Err(mesh.nothing());
    }
    let (mut looks, mut failed) = (Vec::new(), Vec::new());
    let each = mesh
        .ask(programs, |program| async move {
            let first = look(&program).await?;
            tokio::time::sleep(args.interval.saturating_sub(first.at.elapsed())).await;
            Ok((first, look(&program).await?))
        })
        .await;
    for (program, answer) in each {
        match answer {
            Ok((first, second)) => looks.push((program.name, first, second)),
            Err(error) => failed.push(format!("{}: {error:#}", program.title())),
        }
    }
    let rows = match args.by {
        By::Proxy => rates::by_proxy(&looks),
        By::Service => rates::by_service(&looks),
    };
    Ok((rows, failed))
}

async fn look(program: &reach::Program) -> Result<Look> {
    let text = program.text("/stats/prometheus").await?;
    let at = Instant::now();
    // A proxy that is older has no such page; then its metric of whole seconds has to do.
    let cpu = program.json("/status").await.ok().and_then(|page| page["cpu_seconds"].as_f64());
    Ok(Look { at, series: sample::parse(&text), cpu })
}

fn text(rows: &[Row], by: By) -> String {
    let head: &[&str] = match by {
        By::Proxy => &[
            "proxy",
            "out/s",
            "in/s",
            "errors",
            "p50",
            "p99",
            "connections",
            "peers",
            "streams",
            "cpu",
            "rss",
        ],
        By::Service => &["service", "req/s", "errors", "p50", "p99", "tcp/s", "bytes/s"],
    };
    output::table(head, &rows.iter().map(|r| r.cells(by)).collect::<Vec<_>>())
}
