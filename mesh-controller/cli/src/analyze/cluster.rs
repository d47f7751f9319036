//! Objects of a cluster, with the operator's own rights.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use istio_compat::analyze::{Kind, World};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams},
    discovery::{ApiGroup, oneshot, verbs},
};

use crate::{
    args,
    reach::{self, cluster},
};

/// Secrets that are none of a gateway's, and many.
const NOT_THESE: &str = "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token";
const SECRETS: &str = "secrets";

/// Reads everything that analysis looks at; `false` when the account may not read secrets.
pub(super) fn read(cluster: &args::Cluster, world: &mut World) -> Result<bool> {
    reach::within(cluster.timeout, "read the cluster", async {
        let client = cluster::client(&cluster.kube()).await?;
        let mut served = false;
        let mut secrets = None;
        for (name, resource) in resources(&client).await? {
            if name == SECRETS {
                secrets = Some(resource);
                continue;
            }
            served = true;
            add(world, &client, &resource, ListParams::default()).await?;
        }
        if !served {
            bail!("the cluster serves none of the kinds that analysis reads");
        }
        let Some(secrets) = secrets else { return Ok(false) };
        match add(world, &client, &secrets, ListParams::default().fields(NOT_THESE)).await {
            Ok(()) => Ok(true),
            Err(error) => {
                eprintln!("meshctl: secrets are not looked at: {error:#}");
                Ok(false)
            }
        }
    })
}

/// What is read and served, in the version that the cluster prefers.
async fn resources(client: &Client) -> Result<Vec<(String, ApiResource)>> {
    let wanted: BTreeSet<String> = Kind::resources().collect();
    let there = client.list_api_groups().await.map_err(|e| cluster::mend(e, "ask for kinds"))?;
    let there = there.groups.into_iter().map(|g| g.name);
    let groups: BTreeSet<&str> = wanted.iter().map(|name| group_of(name)).collect();
    let mut found = Vec::new();
    for group in there.chain([ApiGroup::CORE_GROUP.to_owned()]).filter(|g| groups.contains(g.as_str())) {
        let group = oneshot::group(client, &group)
            .await
            .map_err(|e| cluster::mend(e, &format!("kinds of {group}")))?;
        for (resource, can) in group.recommended_resources() {
            let name = name_of(&resource);
            if wanted.contains(&name) && can.supports_operation(verbs::LIST) {
                found.push((name, resource));
            }
        }
    }
    Ok(found)
}

/// `virtualservices.networking.istio.io` is of `networking.istio.io`, `pods` of the core.
fn group_of(name: &str) -> &str {
    name.split_once('.').map_or(ApiGroup::CORE_GROUP, |(_, group)| group)
}

fn name_of(resource: &ApiResource) -> String {
    match resource.group.as_str() {
        "" => resource.plural.clone(),
        group => format!("{}.{group}", resource.plural),
    }
}

async fn add(world: &mut World, client: &Client, resource: &ApiResource, params: ListParams) -> Result<()> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    for object in cluster::all(&api, params, &resource.plural).await? {
        let mut value = serde_json::to_value(&object)?;
        // Items of a list do not say what they are.
        value["apiVersion"] = resource.api_version.clone().into();
        value["kind"] = resource.kind.clone().into();
        world.add(value);
    }
    Ok(())
}
