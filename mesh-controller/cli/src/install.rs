//! `meshctl install` and `uninstall`: Helm does the work; this looks before and after, and says what is next.
//!
//! - [`chart`]: the chart that is in this program. - [`helm`]: runs Helm. - [`progress`]: what becomes of the pods meanwhile.
//! - [`leave`]: what stays when the mesh goes.

pub(crate) mod chart;
pub(crate) mod helm;
mod leave;
mod progress;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use kube::Client;
use serde::Serialize;

use crate::{
    Outcome,
    args::{self, Format},
    check,
    doctor::{Check, Status, text},
    output,
    reach::{self, Mesh, cluster},
};
use helm::Helm;

pub(crate) use leave::run as uninstall;

/// For what is read of the cluster, beside Helm's own limit.
const LOOK: Duration = Duration::from_secs(60);
/// A node on which a mesh ran before is ready by what it remembers; that it has joined this one takes some seconds more.
const SETTLE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Installed {
    release: String,
    namespace: String,
    chart: String,
    /// What was found before.
    before: Vec<Check>,
    /// Done, or only said.
    done: bool,
    /// What Helm said; the manifests, if it was a dry run.
    helm: String,
    /// What was found after.
    after: Vec<Check>,
    next: Vec<String>,
}

pub(crate) fn run(args: &args::Install) -> Result<Outcome> {
    check::known(&args.ignore)?;
    let helm = Helm::find(&args.helm, &args.kube)?;
    let people = args.output.format == Format::Table;
    let mut report = Installed {
        release: args.helm.release.clone(),
        namespace: args.kube.namespace.clone(),
        ..Installed::default()
    };
    report.before = reach::within(LOOK, "look at the cluster", async {
        let client = cluster::client(&args.kube).await?;
        check::before(&client, &args.kube.namespace, &args.helm.release, &args.ignore).await
    })?;
    if people {
        eprint!("{}", text(&report.before));
    }
    if check::outcome(&report.before) == Outcome::Findings {
        if people {
            eprintln!(
                "meshctl: nothing was installed; --ignore CHECK overrides a check that is wrong about this cluster"
            );
        } else {
            output::print(args.output.format, &report, String::new)?;
        }
        return Ok(Outcome::Findings);
    }
    // Held until Helm has read it.
    let embedded = if args.chart.is_none() { Some(chart::unpack()?) } else { None };
    let chart: PathBuf = match (&args.chart, &embedded) {
        (Some(chart), _) => chart.clone(),
        (None, Some(dir)) => dir.path().join("mesh"),
        (None, None) => PathBuf::from("mesh"),
    };
    report.chart = match &args.chart {
        Some(chart) => chart.display().to_string(),
        None => format!("the chart of meshctl {}", env!("CARGO_PKG_VERSION")),
    };
    if people {
        let what = if args.helm.dry_run { "asking Helm what it would do with" } else { "installing" };
        eprintln!("{what} {} as release {} in namespace {}", report.chart, report.release, report.namespace);
    }
    let watch = !args.helm.dry_run && !args.helm.no_wait;
    let said = helm.run(&arguments(args, &chart, &helm), watch.then_some(&args.kube))?;
    report.helm = said;
    report.done = !args.helm.dry_run;
    if report.done {
        after(args, &mut report)?;
    }
    output::print(args.output.format, &report, || people_text(&report))?;
    Ok(check::outcome(&report.after))
}

fn arguments(args: &args::Install, chart: &std::path::Path, helm: &Helm) -> Vec<String> {
    let mut all: Vec<String> = ["upgrade", "--install", &args.helm.release].map(str::to_owned).to_vec();
    all.push(chart.display().to_string());
    all.extend(["--namespace", &args.kube.namespace, "--create-namespace"].map(str::to_owned));
    // Values of before stay, those that are new have their defaults.
    all.push("--reset-then-reuse-values".to_owned());
    for file in &args.values {
        all.extend(["--values".to_owned(), file.display().to_string()]);
    }
    for set in &args.set {
        all.extend(["--set".to_owned(), set.clone()]);
    }
    for set in &args.set_string {
        all.extend(["--set-string".to_owned(), set.clone()]);
    }
    if !args.ignore.is_empty() {
        // The chart's own preflight looks again.
        all.extend(["--set".to_owned(), format!("preflight.ignore={{{}}}", args.ignore.join(","))]);
    }
    helm.finish(&mut all, args.helm.dry_run.then_some("--dry-run=server"));
    all
}

fn after(args: &args::Install, report: &mut Installed) -> Result<()> {
    let namespace = &args.kube.namespace;
    if args.helm.no_wait {
        report.next.push(format!("meshctl check -n {namespace}    # once its pods run"));
    } else {
        report.after = reach::within(SETTLE + LOOK, "look at the mesh", async {
            let client: Client = cluster::client(&args.kube).await?;
            let reach = args::Reach::of(&args.kube, LOOK);
            let begun = Instant::now();
            loop {
                let mesh = Mesh::find(&reach).await?;
                let found = check::after::all(&client, &mesh, &args.helm.release).await;
                // Other warnings stay.
                let joined = found.iter().all(|c| c.check != "synced" || c.status == Status::Ok);
                if (joined && check::outcome(&found) == Outcome::Fine) || begun.elapsed() > SETTLE {
                    return Ok(found);
                }
                tokio::time::sleep(PAUSE).await;
            }
        })?;
        report.next.push(format!("meshctl status -n {namespace}"));
    }
    report.next.push(
        "kubectl apply -f YOUR-RULES.yaml    # VirtualServices, DestinationRules, HTTPRoutes".to_owned(),
    );
    report.next.push("meshctl analyze                     # what is wrong with them".to_owned());
    report.next.push("meshctl routes --service NAME       # what a proxy makes of them".to_owned());
    Ok(())
}

fn people_text(report: &Installed) -> String {
    let mut out = format!("{}\n", report.helm.trim_end());
    if !report.after.is_empty() {
        out.push_str(&format!("\n{}", text(&report.after)));
    }
    if !report.next.is_empty() {
        out.push_str("\nNext:\n");
    }
    for next in &report.next {
        out.push_str(&format!("  {next}\n"));
    }
    out
}
