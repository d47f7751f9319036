//! What admission refuses, with the field and the reason: the verdict of Istio's own validation. Names and values are
//! checked here as far as one object tells; what other objects say is for analysis.

mod authorization;
mod destination_rule;
mod expression;
mod extensions;
mod gateway;
mod hosts;
mod http;
mod load_balancer;
mod reach;
mod security;
mod service_entry;
mod sidecar;
mod targets;
mod telemetry;
mod text;
mod virtual_service;

use crate::{
    parse::{Finding, Parsed},
    types::{Duration, Resource},
};
use std::collections::BTreeMap;

/// The verdict on one resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Reasons to refuse it.
    pub errors: Vec<Finding>,
    /// Accepted, but likely not what the user means.
    pub warnings: Vec<Finding>,
}

impl Verdict {
    /// Whether the resource is accepted.
    pub fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }

    fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(Finding::new(path, message));
    }

    fn warn(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Finding::new(path, message));
    }

    /// Adds what a check of one value says against it.
    fn check(&mut self, path: &str, result: Result<(), String>) {
        if let Err(message) = result {
            self.error(path, message);
        }
    }

    fn duration(&mut self, path: &str, duration: Option<&Duration>) {
        if let Some(duration) = duration {
            self.check(path, text::duration(&duration.0));
        }
    }

    /// Labels to select by.
    fn labels(&mut self, path: &str, labels: &BTreeMap<String, String>) {
        for (key, value) in labels {
            if key.is_empty() || key.contains('*') || value.contains('*') {
                self.error(path, format!("{key:?}: {value:?} is not a label to match"));
            }
        }
    }

    /// A selector; one without labels chooses everything.
    fn selector(&mut self, path: &str, labels: Option<&BTreeMap<String, String>>) {
        let Some(labels) = labels else { return };
        self.labels(path, labels);
        if labels.is_empty() {
            self.warn(path, "has no labels: it chooses every workload");
        }
    }

    /// `exportTo` of a ServiceEntry, which may be for nobody.
    fn service_export_to(&mut self, export_to: &[String], namespace: &str) {
        let nobody = export_to.iter().filter(|e| *e == "~").count();
        if nobody > 0 && export_to.len() > 1 {
            self.error("spec.exportTo", "`~` (nobody) stands alone");
        }
        let others: Vec<String> = export_to.iter().filter(|e| *e != "~").cloned().collect();
        self.export_to(&others, namespace, false);
    }

    fn export_to(&mut self, export_to: &[String], namespace: &str, chosen_workloads: bool) {
        let mut seen: Vec<&str> = Vec::new();
        for (i, entry) in export_to.iter().enumerate() {
            let path = format!("spec.exportTo[{i}]");
            let key = if entry == "." { namespace } else { entry.as_str() };
            if seen.contains(&key) {
                self.error(path, format!("{entry:?} is there twice"));
                continue;
            }
            seen.push(key);
            match entry.as_str() {
                "." | "*" => {}
                "~" => self.error(path, "`~` (nobody) is for ServiceEntries only"),
                name => self.check(&path, text::dns_label(name, "namespace")),
            }
        }
        if seen.contains(&"*") && export_to.len() > 1 {
            self.error("spec.exportTo", "`*` stands alone: it exports to everybody already");
        }
        if chosen_workloads && seen.iter().any(|n| *n != namespace) {
            self.error("spec.exportTo", "a rule with a workloadSelector is for its own namespace only");
        }
    }
}

/// Annotations with a meaning that users must not ask for here.
const RESERVED_ANNOTATIONS: [&str; 4] = [
    "istio.io/dry-run",
    "internal.istio.io/webhook-always-reject",
    "internal.istio.io/parent-namespace",
    "internal.istio.io/parents",
];

/// Everything that is said against an object: by admission, and by the schema of its kind where admission relies on
/// that. Of too many certificates Istio's admission warns only.
pub fn judge(parsed: &Parsed) -> Verdict {
    let mut verdict = validate(&parsed.resource);
    for finding in &parsed.idle {
        if !verdict.warnings.iter().any(|w| w.path == finding.path) {
            verdict.warnings.push(finding.clone());
        }
    }
    if matches!(parsed.resource, Resource::VirtualService(_) | Resource::DestinationRule(_)) {
        return verdict;
    }
    for finding in &parsed.violations {
        let lenient =
            finding.path.ends_with(".tlsCertificates") || finding.path.ends_with(".credentialNames");
        if !lenient && !verdict.errors.iter().any(|e| e.path == finding.path) {
            verdict.errors.push(finding.clone());
        }
    }
    verdict
}

/// Validates one resource.
pub fn validate(resource: &Resource) -> Verdict {
    let mut verdict = Verdict::default();
    let may_run_dry = matches!(resource, Resource::AuthorizationPolicy(_));
    for name in RESERVED_ANNOTATIONS.into_iter().skip(usize::from(may_run_dry)) {
        if resource.meta().annotations.contains_key(name) {
            verdict.error(format!("metadata.annotations[{name:?}]"), "must not be set on this kind");
        }
    }
    let out = &mut verdict;
    match resource {
        Resource::AuthorizationPolicy(object) => authorization::check(object, out),
        Resource::DestinationRule(object) => destination_rule::check(object, out),
        Resource::EnvoyFilter(object) => extensions::check_filter(object, out),
        Resource::Gateway(object) => gateway::check(object, out),
        Resource::PeerAuthentication(object) => security::check_peer(object, out),
        Resource::ProxyConfig(object) => extensions::check_proxy(object, out),
        Resource::RequestAuthentication(object) => security::check_request(object, out),
        Resource::ServiceEntry(object) => service_entry::check(object, out),
        Resource::Sidecar(object) => sidecar::check(object, out),
        Resource::Telemetry(object) => telemetry::check(object, out),
        Resource::VirtualService(object) => virtual_service::check(object, out),
        Resource::WasmPlugin(object) => extensions::check_plugin(object, out),
        Resource::WorkloadEntry(object) => service_entry::check_entry(object, out),
        Resource::WorkloadGroup(object) => service_entry::check_group(object, out),
    }
    verdict
}

#[cfg(test)]
mod tests;
