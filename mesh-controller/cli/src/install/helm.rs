//! Runs the operator's Helm.

use std::{
    io::Read,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::progress::Progress;
use crate::{args, reach};

/// What Helm may print; a chart's manifests are some 100 KB.
const MAX_BYTES: u64 = 64 << 20;
/// Beyond its own limit; then it hangs.
const GRACE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(100);

pub(super) struct Helm {
    program: PathBuf,
    cluster: Vec<String>,
    timeout: Duration,
    no_wait: bool,
    pub(super) version: String,
}

impl Helm {
    /// Asks for its version: whether there is one, and whether it is new enough.
    pub(super) fn find(args: &args::Helm, kube: &args::Kube) -> Result<Self> {
        let mut helm = Self {
            program: args.helm.clone(),
            cluster: cluster(kube),
            timeout: args.timeout,
            no_wait: args.no_wait,
            version: String::new(),
        };
        let mut command = Command::new(&helm.program);
        command.args(["version", "--short"]);
        let output = helm.output(command, Duration::from_secs(20), None).with_context(|| {
            format!(
                "run {} (Helm 3.14 or later does the work; name another with --helm PROGRAM)",
                helm.program.display()
            )
        })?;
        helm.version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match version(&helm.version) {
            Some(v) if v < (3, 14) => {
                bail!(
                    "{} is {}: the chart needs 3.14 or later; name another with --helm",
                    helm.program.display(),
                    helm.version
                )
            }
            _ => Ok(helm),
        }
    }

    /// Ends a list of arguments of a verb that changes something.
    pub(super) fn finish(&self, arguments: &mut Vec<String>, dry_run: Option<&str>) {
        match dry_run {
            Some(flag) => arguments.push(flag.to_owned()),
            None if !self.no_wait => arguments.push("--wait".to_owned()),
            None => {}
        }
        arguments.extend(["--timeout".to_owned(), format!("{}s", self.timeout.as_secs().max(1))]);
    }

    /// What Helm prints; an error has its own words. With a cluster, says meanwhile what becomes of the mesh's pods.
    pub(super) fn run(&self, arguments: &[String], watched: Option<&args::Kube>) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(arguments).args(&self.cluster);
        let limit = self.timeout + GRACE;
        let output = self
            .output(command, limit, watched.map(Progress::new))
            .with_context(|| format!("run {}", self.program.display()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !output.status.success() {
            let verb = arguments.first().map_or("", String::as_str);
            bail!(
                "{} {verb}: {}\nSee what runs: meshctl check; take back what is there: meshctl uninstall",
                self.program.display(),
                text(&output.stderr)
            );
        }
        // Warnings of a success.
        let warnings = text(&output.stderr);
        if !warnings.is_empty() {
            eprintln!("{warnings}");
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn output(
        &self,
        mut command: Command,
        limit: Duration,
        mut progress: Option<Progress>,
    ) -> Result<Output> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        // Both are read at once: a full pipe on one side would stop the other.
        let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > limit {
                end(&mut child);
                bail!("no end after {}", reach::span(limit));
            }
            match &mut progress {
                Some(progress) => progress.step(),
                None => thread::sleep(STEP),
            }
        };
        let text = |r: thread::JoinHandle<Vec<u8>>| r.join().unwrap_or_default();
        Ok(Output { status, stdout: text(out), stderr: text(err) })
    }
}

/// The values that a release was given, as JSON.
pub(crate) async fn values(args: &args::BugReport, namespace: &str) -> Result<String> {
    let mut command = tokio::process::Command::new(&args.helm);
    command.args(["get", "values", &args.release, "--namespace", namespace, "-o", "json"]);
    command.args(cluster(&args.look.reach.kube)).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.with_context(|| format!("run {}", args.helm.display()))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Which cluster, in Helm's words.
fn cluster(kube: &args::Kube) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(path) = &kube.kubeconfig {
        all.extend(["--kubeconfig".to_owned(), path.display().to_string()]);
    }
    if let Some(context) = &kube.context {
        all.extend(["--kube-context".to_owned(), context.clone()]);
    }
    all
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before a failure is shown.
        pipe.map(|p| p.take(MAX_BYTES).read_to_end(&mut bytes));
        bytes
    })
}

fn end(child: &mut Child) {
    child.kill().ok();
    child.wait().ok();
}

/// `v3.16.2+g13654a5`
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches(|c: char| !c.is_ascii_digit()).split(['.', '+', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_the_forms_that_helm_has() {
        assert_eq!(version("v3.16.2+g13654a5"), Some((3, 16)));
        assert_eq!(version("v4.0.0"), Some((4, 0)));
        assert_eq!(version("3.9.0-rc.1"), Some((3, 9)));
        assert_eq!(version("nonsense"), None);
    }
}
