//! The CAs' certificates where every pod of the namespace can mount them.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::PostParams};
use mesh_ca::cluster;
use node_rt::Tasks;

use super::{CALL, Cas, Place};

/// How often to look whether it is still there.
const PERIOD: Duration = Duration::from_secs(10);

/// Keeps the ConfigMap `mesh-ca` until the drain.
pub(crate) fn keep_ca(place: Place, mut cas: Cas, tasks: &Tasks) {
    let drain = tasks.drain().clone();
    tasks.spawn("CA ConfigMap", async move {
        let mut said = String::new();
        loop {
            let ca_pem = cas.borrow_and_update().bundle_pem().to_owned();
            let problem = match tokio::time::timeout(CALL, once(&place, &ca_pem)).await {
                Ok(Ok(wrote)) => {
                    if wrote {
                        tracing::info!(
                            namespace = place.namespace,
                            "ConfigMap mesh-ca has the certificates of the CAs that are trusted"
                        );
                    }
                    String::new()
                }
                Ok(Err(error)) => crate::chain(&error),
                Err(_late) => "no answer".to_owned(),
            };
            if !problem.is_empty() && problem != said {
                tracing::warn!(namespace = place.namespace, error = problem, "cannot keep ConfigMap mesh-ca");
            }
            said = problem;
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => {}
                Ok(()) = cas.changed() => {}
                () = drain.stop_accepting() => return,
            }
        }
    });
}

/// `true` when something was written.
async fn once(place: &Place, ca_pem: &str) -> Result<bool, kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(place.client.clone(), &place.namespace);
    let data = BTreeMap::from([(cluster::CA_CERTIFICATE.to_owned(), ca_pem.to_owned())]);
    let written = match api.get_opt(cluster::CA).await? {
        Some(found) if found.data.as_ref() == Some(&data) => return Ok(false),
        Some(found) => {
            let new = ConfigMap { data: Some(data), ..found };
            api.replace(cluster::CA, &PostParams::default(), &new).await
        }
        None => {
            let metadata = place.metadata(cluster::CA);
            let new = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            api.create(&PostParams::default(), &new).await
        }
    };
    match written {
        Ok(_) => Ok(true),
        // Another replica writes the same.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
