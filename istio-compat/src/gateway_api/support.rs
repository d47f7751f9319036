//! Fields of Gateway API that this mesh accepts and does not honour; every one is said.

use super::objects::Typed;
use crate::parse::Finding;

const NO_SESSIONS: &str =
    "session persistence is not implemented; requests are balanced as if it were absent";
const NO_EXTENSION: &str = "no extension is implemented; the rule is invalid";

/// The fields of one object that have no effect.
pub(super) fn unsupported(object: &Typed) -> Vec<Finding> {
    let mut out = Vec::new();
    let mut say = |path: String, message: &str| out.push(Finding::new(path, message));
    match object {
        Typed::HttpRoute(route) => {
            for (i, rule) in route.spec.rules.iter().enumerate() {
                if rule.session_persistence.is_some() {
                    say(format!("spec.rules[{i}].sessionPersistence"), NO_SESSIONS);
                }
                for (f, filter) in rule.filters.iter().enumerate() {
                    if matches!(filter.kind.as_str(), "ExtensionRef" | "ExternalAuth") {
                        say(format!("spec.rules[{i}].filters[{f}]"), NO_EXTENSION);
                    }
                }
            }
            default_gateways(route.spec.use_default_gateways.as_ref(), &mut say);
        }
        Typed::GrpcRoute(route) => {
            for (i, rule) in route.spec.rules.iter().enumerate() {
                if rule.session_persistence.is_some() {
                    say(format!("spec.rules[{i}].sessionPersistence"), NO_SESSIONS);
                }
            }
            default_gateways(route.spec.use_default_gateways.as_ref(), &mut say);
        }
        Typed::TlsRoute(route) | Typed::TcpRoute(route) => {
            default_gateways(route.spec.use_default_gateways.as_ref(), &mut say);
        }
        Typed::Gateway(gateway) => {
            if gateway.spec.default_scope.is_some() {
                say("spec.defaultScope".to_owned(), "default Gateways are not implemented");
            }
            let tls = gateway.spec.tls.as_ref();
            if tls.and_then(|t| t.backend.as_ref()).is_some() {
                say(
                    "spec.tls.backend".to_owned(),
                    "the reference is checked; no client certificate is shown to backends",
                );
            }
        }
        Typed::XBackendTrafficPolicy(policy) if policy.spec.session_persistence.is_some() => {
            say("spec.sessionPersistence".to_owned(), NO_SESSIONS);
        }
        Typed::BackendTlsPolicy(policy) if !policy.spec.options.is_empty() => {
            say("spec.options".to_owned(), "no option is known");
        }
        _ => {}
    }
    out
}

fn default_gateways(scope: Option<&String>, say: &mut impl FnMut(String, &str)) {
    if scope.is_some_and(|s| s != "None") {
        say("spec.useDefaultGateways".to_owned(), "default Gateways are not implemented");
    }
}
