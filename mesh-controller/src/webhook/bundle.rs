//! The CAs of the webhook in the cluster's ValidatingWebhookConfiguration: without them the API server trusts no webhook,
//! and after a new CA it would trust none any more. The next one is there before it signs.

use std::time::Duration;

use k8s_openapi::{ByteString, api::admissionregistration::v1::ValidatingWebhookConfiguration};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use node_rt::Tasks;
use serde_json::{Value, json};

use crate::state::Cas;

/// How often to look; a configuration that is applied anew has no CA until then.
const PERIOD: Duration = Duration::from_secs(10);

/// Keeps the CAs in the configuration `name`. A configuration that does not exist is nobody's fault.
pub(crate) fn keep(client: Client, name: String, mut cas: Cas, tasks: &Tasks) {
    let drain = tasks.drain().clone();
    tasks.spawn("webhook CA", async move {
        let api: Api<ValidatingWebhookConfiguration> = Api::all(client);
        let mut said = String::new();
        loop {
            let ca_pem = cas.borrow_and_update().bundle_pem().to_owned();
            let problem = match once(&api, &name, &ca_pem).await {
                Ok(false) => String::new(),
                Ok(true) => {
                    tracing::info!(configuration = name, "the webhook's CA is in its configuration");
                    String::new()
                }
                Err(error) => crate::chain(&error),
            };
            if !problem.is_empty() && problem != said {
                tracing::warn!(configuration = name, error = problem, "cannot keep the webhook's CA");
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
async fn once(
    api: &Api<ValidatingWebhookConfiguration>,
    name: &str,
    ca_pem: &str,
) -> Result<bool, kube::Error> {
    let Some(found) = api.get_opt(name).await? else { return Ok(false) };
    let bundles: Vec<Option<&[u8]>> = found
        .webhooks
        .iter()
        .flatten()
        .map(|w| w.client_config.ca_bundle.as_ref().map(|ByteString(bytes)| bytes.as_slice()))
        .collect();
    let Some(patch) = missing(&bundles, ca_pem) else { return Ok(false) };
    let patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
    api.patch(name, &PatchParams::default(), &Patch::<()>::Json(patch)).await?;
    Ok(true)
}

/// The change that puts the CA where it is not. `test` is left out on purpose: the list is written by one operator.
fn missing(bundles: &[Option<&[u8]>], ca_pem: &str) -> Option<Value> {
    let wrong = bundles.iter().enumerate().filter(|(_, b)| **b != Some(ca_pem.as_bytes()));
    let changes: Vec<Value> = wrong
        .map(|(i, _)| {
            let value = ByteString(ca_pem.as_bytes().to_vec());
            json!({ "op": "add", "path": format!("/webhooks/{i}/clientConfig/caBundle"), "value": value })
        })
        .collect();
    (!changes.is_empty()).then(|| changes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        assert_eq!(missing(&[Some(b"ca")], "ca"), None);
        assert_eq!(missing(&[], "ca"), None);
        let patch = missing(&[Some(b"ca"), None, Some(b"old")], "ca").unwrap();
        assert_eq!(patch.as_array().unwrap().len(), 2);
        assert_eq!(
            patch[0],
            json!({ "op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "Y2E=" })
        );
    }
}
