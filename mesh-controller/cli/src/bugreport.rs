//! `meshctl bug-report`: one archive with what somebody needs who has to find a fault from afar, without secrets.
//!
//! - [`archive`]: bounded, packed files. - [`redact`]: what is a secret. Pure.
//! - [`collect`]: what goes in.

mod archive;
mod collect;
pub(crate) mod redact;

use std::{fs::File, path::PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::{
    Outcome, args, output,
    reach::{self, Mesh},
    token::now,
};
use archive::Archive;
pub(crate) use collect::resource_of;

/// Objects, pages, logs and the rest take this many times what one command takes.
const STEPS: u32 = 4;

/// What was made.
#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    /// Of the archive.
    bytes: u64,
    files: usize,
    /// What could not be had, or did not fit, and why.
    missing: Vec<String>,
}

pub(crate) fn run(args: &args::BugReport) -> Result<Outcome> {
    if args.max_mib == 0 {
        bail!("--max-mib must be at least 1");
    }
    let file = args.file.clone().unwrap_or_else(|| PathBuf::from(format!("selvage-report-{}.tar.gz", now())));
    // Before anything is asked: a place that cannot be written to is found at once.
    let out = File::create(&file).with_context(|| format!("--file: create {}", file.display()))?;
    let mut archive = Archive::new(out, args.max_mib << 20, now());
    let limit = args.look.reach.timeout.saturating_mul(STEPS);
    let asked = reach::within(limit + args.look.reach.timeout, "report of the mesh", async {
        let mesh = Mesh::find(&args.look.reach).await?.until(limit);
        if mesh.programs.is_empty() && mesh.client.is_none() {
            return Err(mesh.nothing());
        }
        let asked = tokio::time::timeout(limit, collect::all(&mesh, args, &mut archive)).await;
        asked.unwrap_or_else(|_| {
            // What there is helps whoever looks for a fault.
            let why = format!("{} have passed (--timeout TIME gives it longer)", reach::span(limit));
            archive.miss("whatever comes after that", &why);
            Ok(())
        })
    });
    if let Err(error) = asked {
        std::fs::remove_file(&file).ok();
        return Err(error);
    }
    let (files, missing) = archive.finish().with_context(|| format!("write {}", file.display()))?;
    let bytes = std::fs::metadata(&file).map_or(0, |m| m.len());
    let report = Report { file, bytes, files, missing };
    output::print(args.look.output.format, &report, || text(&report))?;
    Ok(Outcome::Fine)
}

fn text(report: &Report) -> String {
    let mut out = format!(
        "{}: {} files, {:.1} MiB packed. Secrets are replaced by ***; look into it before you hand it on.\n",
        report.file.display(),
        report.files,
        report.bytes as f64 / 1_048_576.0
    );
    for missing in &report.missing {
        out.push_str(&format!("not in it: {missing}\n"));
    }
    out
}
