//! `meshctl webhook`: the ValidatingWebhookConfiguration of the mesh, with the CA of this machine's controller.

use anyhow::{Context, Result};
use base64::Engine as _;
use istio_compat::analyze::Kind;
use mesh_ca::{StateDir, TrustDomain};
use serde_json::{Value, json};

use crate::{Outcome, args, output};

/// Groups that are asked about, and their versions.
const GROUPS: [(&str, &[&str]); 5] = [
    ("networking.istio.io", &["v1", "v1beta1", "v1alpha3"]),
    ("security.istio.io", &["v1", "v1beta1"]),
    ("telemetry.istio.io", &["v1", "v1alpha1"]),
    ("extensions.istio.io", &["v1alpha1"]),
    ("gateway.networking.k8s.io", &["*"]),
];

pub(crate) fn run(args: &args::Webhook) -> Result<Outcome> {
    let manifest = manifest(args)?;
    let format =
        if args.output.format == args::Format::Json { args::Format::Json } else { args::Format::Yaml };
    output::print(format, &manifest, String::new)?;
    Ok(Outcome::Fine)
}

fn manifest(args: &args::Webhook) -> Result<Value> {
    let trust_domain = TrustDomain::new(&args.state.trust_domain).context("--trust-domain")?;
    let authority = StateDir::new(args.state.path()).authority(&trust_domain, crate::token::now())?;
    let bundle = base64::engine::general_purpose::STANDARD.encode(authority.bundle_pem());
    let client = match &args.url {
        Some(url) => json!({ "url": url, "caBundle": bundle }),
        None => {
            let (namespace, name) =
                args.service.split_once('/').context("--service must be NAMESPACE/NAME")?;
            let service =
                json!({ "namespace": namespace, "name": name, "path": "/validate", "port": args.port });
            json!({ "service": service, "caBundle": bundle })
        }
    };
    let rules: Vec<Value> = GROUPS
        .iter()
        .map(|(group, versions)| {
            json!({
                "apiGroups": [group], "apiVersions": versions, "operations": ["CREATE", "UPDATE"],
                "resources": resources(group), "scope": "*",
            })
        })
        .collect();
    Ok(json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": args.name },
        "webhooks": [{
            "name": "validation.selvage.dev",
            "clientConfig": client,
            "rules": rules,
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "timeoutSeconds": 5,
            "matchPolicy": "Equivalent",
            "failurePolicy": if args.fail_closed { "Fail" } else { "Ignore" },
        }],
    }))
}

/// The plural names of the kinds of a group.
fn resources(group: &str) -> Vec<String> {
    let all = Kind::resources();
    all.filter_map(|r| r.split_once('.').filter(|(_, g)| *g == group).map(|(plural, _)| plural.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_has_its_kinds() {
        assert!(resources("networking.istio.io").contains(&"serviceentries".to_owned()));
        assert!(GROUPS.iter().all(|(group, _)| !resources(group).is_empty()));
    }
}
