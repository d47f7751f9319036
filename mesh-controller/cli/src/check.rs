//! `meshctl check`: whether a cluster can have the mesh, and whether the mesh that it has is well.
//!
//! - [`after`]: reads what there is. - [`verdicts`]: what is concluded. Pure.

pub(crate) mod after;
mod verdicts;

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client};
use mesh_controller::preflight::{CHECKS, Level, Preflight, Verdict};

use crate::{
    Outcome, args,
    doctor::{Check, Status, text},
    output,
    reach::{self, Mesh, cluster},
};

pub(crate) fn run(args: &args::Check) -> Result<Outcome> {
    known(&args.ignore)?;
    let checks = reach::within(args.look.reach.timeout, "check of the cluster", async {
        let mesh = Mesh::find(&args.look.reach).await?;
        let Some(client) = &mesh.client else {
            anyhow::bail!(
                "this looks at a cluster; `meshctl doctor --admin URL` looks at a node, `meshctl status --admin URL` at a controller"
            );
        };
        if args.before || !installed(client, &mesh.namespace).await? {
            if !args.before {
                eprintln!(
                    "meshctl: there is no mesh in namespace {}: this is what an installation would meet",
                    mesh.namespace
                );
            }
            return before(client, &mesh.namespace, &args.release, &args.ignore).await;
        }
        Ok(after::all(client, &mesh, &args.release).await)
    })?;
    output::print(args.look.output.format, &checks, || text(&checks))?;
    Ok(outcome(&checks))
}

pub(crate) fn outcome(checks: &[Check]) -> Outcome {
    if checks.iter().any(|c| c.status == Status::Fail) { Outcome::Findings } else { Outcome::Fine }
}

/// A name that is no check's would ignore nothing.
pub(crate) fn known(ignore: &[String]) -> Result<()> {
    match ignore.iter().find(|i| !CHECKS.contains(&i.as_str())) {
        Some(unknown) => anyhow::bail!("--ignore: {unknown:?} is no check; there is {}", CHECKS.join(", ")),
        None => Ok(()),
    }
}

async fn installed(client: &Client, namespace: &str) -> Result<bool> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt("mesh-controller").await;
    Ok(found.map_err(|e| cluster::mend(e, "look for deployment mesh-controller"))?.is_some())
}

/// What the chart's own preflight would say.
pub(crate) async fn before(
    client: &Client,
    namespace: &str,
    release: &str,
    ignore: &[String],
) -> Result<Vec<Check>> {
    let preflight = Preflight {
        namespace: namespace.to_owned(),
        release: release.to_owned(),
        ignore: ignore.to_vec(),
        controller_addresses: None,
        kubeconfig: None,
    };
    let verdicts = preflight.look(client.clone()).await.context("look at the cluster")?;
    Ok(verdicts.into_iter().map(check).collect())
}

fn check(verdict: Verdict) -> Check {
    let Verdict { check, level, text } = verdict;
    match level {
        Level::Ok => Check::ok(check, text),
        Level::Warn => Check::warn(check, text, ""),
        Level::Refuse => Check::fail(
            check,
            text,
            format!("--ignore {check} overrides it where it is wrong about this cluster."),
        ),
    }
}
