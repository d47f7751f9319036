//! Whom a policy is for: workloads by label, or an object by name.

use super::Verdict;
use crate::types::{PolicyTargetReference, WorkloadSelector};

const KNOWN: [(&str, &str); 4] = [
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
];

pub(super) fn check(
    selector: Option<&WorkloadSelector>,
    single: Option<&PolicyTargetReference>,
    list: &[PolicyTargetReference],
    out: &mut Verdict,
) {
    let ways =
        usize::from(selector.is_some()) + usize::from(single.is_some()) + usize::from(!list.is_empty());
    if ways > 1 {
        out.error("spec.selector", "only one of selector, targetRef and targetRefs may be set");
    }
    if let Some(s) = selector {
        out.selector("spec.selector", Some(&s.match_labels));
    }
    if let Some(target) = single {
        reference("spec.targetRef", target, out);
    }
    for (i, target) in list.iter().enumerate() {
        reference(&format!("spec.targetRefs[{i}]"), target, out);
    }
}

fn reference(path: &str, target: &PolicyTargetReference, out: &mut Verdict) {
    if target.name.is_empty() {
        out.error(format!("{path}.name"), "is required");
    }
    if !target.namespace.is_empty() {
        out.error(
            format!("{path}.namespace"),
            "must not be set: only objects of the policy's namespace are allowed",
        );
    }
    let group = if target.group == "core" { "" } else { &target.group };
    if !KNOWN.contains(&(group, target.kind.as_str())) {
        out.error(
            format!("{path}.kind"),
            format!(
                "{}/{} is none of Service, ServiceEntry, Gateway and GatewayClass",
                target.group, target.kind
            ),
        );
    }
}
