//! Objects of a cluster, through the `kubectl` that operators have: it knows their contexts and ways to log in.

use std::{
    collections::BTreeSet,
    io::Read,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};
use istio_compat::analyze::{Kind, World};
use serde_json::Value;

use crate::args;

/// Most bytes of an answer.
const MAX_BYTES: u64 = 1 << 30;
/// Most bytes of a complaint.
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// Secrets that are none of a gateway's, and many.
const NOT_THESE: &str = "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token";

/// Reads everything that analysis looks at; `false` when the account may not read secrets.
pub(super) fn read(cluster: &args::Cluster, world: &mut World) -> Result<bool> {
    let served = kubectl(cluster, &["api-resources", "--verbs=list", "-o", "name"])?;
    let served: BTreeSet<&str> = served.lines().map(str::trim).collect();
    let wanted: Vec<String> =
        Kind::resources().filter(|r| r != "secrets" && served.contains(r.as_str())).collect();
    if wanted.is_empty() {
        bail!("the cluster serves none of the kinds that analysis reads");
    }
    add(world, &kubectl(cluster, &["get", &wanted.join(","), "-A", "-o", "json"])?)?;
    match kubectl(cluster, &["get", "secrets", "-A", "--field-selector", NOT_THESE, "-o", "json"]) {
        Ok(secrets) => add(world, &secrets).map(|()| true),
        Err(error) => {
            eprintln!("meshctl: secrets are not looked at: {error:#}");
            Ok(false)
        }
    }
}

fn add(world: &mut World, answer: &str) -> Result<()> {
    let mut list: Value = serde_json::from_str(answer).context("read kubectl's answer")?;
    let Some(Value::Array(items)) = list.get_mut("items").map(Value::take) else {
        bail!("kubectl's answer is no list");
    };
    for item in items {
        world.add(item);
    }
    Ok(())
}

fn kubectl(cluster: &args::Cluster, args: &[&str]) -> Result<String> {
    let mut command = Command::new(&cluster.kubectl);
    if let Some(path) = &cluster.kubeconfig {
        command.arg("--kubeconfig").arg(path);
    }
    if let Some(context) = &cluster.context {
        command.arg("--context").arg(context);
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = cluster.kubectl.display();
    let mut child = command.spawn().with_context(|| {
        format!("run {shown} (it reads the cluster; name another with --kubectl, or give files with -f)")
    })?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    // Both are read at once: a full pipe on one side would stop the other.
    let errors = thread::spawn(move || text_of(err, MAX_ERROR_BYTES));
    let answer = text_of(out, MAX_BYTES);
    let errors = errors.join().unwrap_or_default();
    let status = child.wait().with_context(|| format!("wait for {shown}"))?;
    if !status.success() {
        bail!("{shown} {}: {}", args.first().copied().unwrap_or_default(), errors.trim());
    }
    Ok(answer)
}

fn text_of(pipe: Option<impl Read>, limit: u64) -> String {
    let mut bytes = Vec::new();
    // What was read before a failure is shown or refused by whoever parses it.
    pipe.map(|p| p.take(limit).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}
