//! `meshctl uninstall`: what goes, what stays, and what `--purge-crds` takes with it.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams},
};
use serde::Serialize;

use super::helm::Helm;
use crate::{
    Outcome,
    args::{self, Format},
    output,
    reach::{self, cluster},
};

const LOOK: Duration = Duration::from_secs(120);

/// What was done, or would be.
#[derive(Debug, Default, Serialize)]
struct Left {
    release: String,
    namespace: String,
    done: bool,
    helm: String,
    /// Definitions that came with the chart.
    crds: Vec<Crd>,
    /// They were removed, or would be.
    crds_removed: bool,
    stays: Vec<String>,
}

/// A definition and how many objects there are of it.
#[derive(Debug, Clone, Serialize)]
struct Crd {
    name: String,
    objects: usize,
}

impl Crd {
    /// The registry of nodes is the controllers' own, and goes with the release.
    fn is_of_rules(&self) -> bool {
        !self.name.ends_with(".selvage.dev")
    }
}

pub(crate) fn run(args: &args::Uninstall) -> Result<Outcome> {
    let helm = Helm::find(&args.helm, &args.kube)?;
    let people = args.output.format == Format::Table;
    let mut left = Left {
        release: args.helm.release.clone(),
        namespace: args.kube.namespace.clone(),
        crds_removed: args.purge_crds,
        ..Left::default()
    };
    left.crds = reach::within(LOOK, "look at the cluster", async {
        definitions(&cluster::client(&args.kube).await?).await
    })?;
    left.stays = stays(&left);
    let rules: usize = left.crds.iter().filter(|c| c.is_of_rules()).map(|c| c.objects).sum();
    if args.purge_crds && rules > 0 && !args.yes && !args.helm.dry_run {
        anyhow::bail!(
            "--purge-crds would delete {rules} rules ({}): save them (kubectl get KIND -A -o yaml), then add --yes",
            with_objects(&left.crds)
        );
    }
    let mut arguments =
        vec!["uninstall".to_owned(), left.release.clone(), "--namespace".to_owned(), left.namespace.clone()];
    helm.finish(&mut arguments, args.helm.dry_run.then_some("--dry-run"));
    if people && !args.helm.dry_run {
        eprintln!(
            "removing release {} from namespace {}: proxies give the nodes' networks back",
            left.release, left.namespace
        );
    }
    left.helm = match helm.run(&arguments, None) {
        // Purging what an earlier uninstall has left.
        Err(error) if args.purge_crds && format!("{error:#}").contains("not found") => {
            format!("there is no release {}\n", left.release)
        }
        other => other?,
    };
    left.done = !args.helm.dry_run;
    if args.purge_crds && left.done {
        reach::within(LOOK, "remove definitions", async {
            purge(&cluster::client(&args.kube).await?, &left.crds).await
        })?;
    }
    output::print(args.output.format, &left, || text(&left))?;
    Ok(Outcome::Fine)
}

/// The definitions that this chart has made: those of Istio's own installation are left alone.
async fn definitions(client: &Client) -> Result<Vec<Crd>> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let all = cluster::all(&api, ListParams::default().labels(cluster::PART_OF), "customresourcedefinitions")
        .await?;
    let mut found = Vec::new();
    for crd in all {
        let name = crd.name_any();
        let value = serde_json::to_value(&crd)?;
        let objects = match crate::bugreport::resource_of(&value) {
            Some((resource, _)) => {
                let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
                cluster::all(&api, ListParams::default(), &name).await?.len()
            }
            None => 0,
        };
        found.push(Crd { name, objects });
    }
    Ok(found)
}

fn stays(left: &Left) -> Vec<String> {
    let mut stays = Vec::new();
    let rules: usize = left.crds.iter().filter(|c| c.is_of_rules()).map(|c| c.objects).sum();
    if !left.crds.is_empty() && !left.crds_removed {
        stays.push(format!("{} definitions with {rules} rules (--purge-crds removes them)", left.crds.len()));
    }
    stays.push(format!("namespace {0} (kubectl delete namespace {0})", left.namespace));
    stays.push(
        "on nodes, the folder of proxy.stateDir: key, certificate, last state (rm -r /var/lib/selvage)"
            .to_owned(),
    );
    stays
}

fn with_objects(crds: &[Crd]) -> String {
    let some: Vec<String> = crds
        .iter()
        .filter(|c| c.objects > 0 && c.is_of_rules())
        .map(|c| format!("{} of {}", c.objects, c.name))
        .collect();
    some.join(", ")
}

async fn purge(client: &Client, crds: &[Crd]) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in crds {
        match api.delete(&crd.name, &DeleteParams::background()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(cluster::mend(error, &format!("delete definition {}", crd.name))),
        }
    }
    Ok(())
}

fn text(left: &Left) -> String {
    let mut out = left.helm.clone();
    if left.crds_removed {
        let verb = if left.done { "removed" } else { "would be removed" };
        out.push_str(&format!("{} definitions {verb}\n", left.crds.len()));
        let rules = with_objects(&left.crds);
        if !rules.is_empty() {
            out.push_str(&format!("with them: {rules}\n"));
        }
    }
    out.push_str("What stays:\n");
    for stays in &left.stays {
        out.push_str(&format!("  {stays}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_said() {
        let crd = Crd { name: "virtualservices.networking.istio.io".to_owned(), objects: 3 };
        let mut left = Left { namespace: "ns".to_owned(), crds: vec![crd.clone()], ..Left::default() };
        left.stays = stays(&left);
        let kept = text(&left);
        assert!(kept.contains("1 definitions with 3 rules") && kept.contains("namespace ns"), "{kept}");
        left.crds_removed = true;
        left.stays = stays(&left);
        let purged = text(&left);
        assert!(
            purged.contains("1 definitions would be removed") && !purged.contains("--purge-crds"),
            "{purged}"
        );
        assert_eq!(with_objects(&[crd]), "3 of virtualservices.networking.istio.io");
    }
}
