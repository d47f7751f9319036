//! Fields of Gateway API that this mesh accepts and does not honour; every one is said.

use super::objects::Typed;
use crate::parse::Finding;

const NO_SESSIONS: &str =
    "session persistence is not implemented; requests are balanced as if it were absent";
const NO_EXTENSION: &str = "no extension is implemented; the rule is invalid";

/// Rules that ask for session persistence.
pub(super) fn sessions(rules: impl Iterator<Item = bool>) -> Vec<Finding> {
    let asking = rules.enumerate().filter(|(_, asks)| *asks);
    asking.map(|(i, _)| Finding::new(format!("spec.rules[{i}].sessionPersistence"), NO_SESSIONS)).collect()
}

/// The fields of one object that have no effect.
pub(super) fn unsupported(object: &Typed) -> Vec<Finding> {
    let mut out = Vec::new();
    let say = |path: String, message: &str, out: &mut Vec<Finding>| out.push(Finding::new(path, message));
    match object {
        Typed::HttpRoute(route) => {
            out.extend(sessions(route.spec.rules.iter().map(|r| r.session_persistence.is_some())));
            for (i, rule) in route.spec.rules.iter().enumerate() {
                for (f, filter) in rule.filters.iter().enumerate() {
                    if matches!(filter.kind.as_str(), "ExtensionRef" | "ExternalAuth") {
                        say(format!("spec.rules[{i}].filters[{f}]"), NO_EXTENSION, &mut out);
                    }
                }
            }
            default_gateways(route.spec.use_default_gateways.as_ref(), &mut out);
        }
        Typed::GrpcRoute(route) => {
            out.extend(sessions(route.spec.rules.iter().map(|r| r.session_persistence.is_some())));
            default_gateways(route.spec.use_default_gateways.as_ref(), &mut out);
        }
        Typed::TlsRoute(route) | Typed::TcpRoute(route) => {
            default_gateways(route.spec.use_default_gateways.as_ref(), &mut out);
        }
        Typed::UdpRoute(_) => say("spec".to_owned(), "UDPRoute is not implemented", &mut out),
        Typed::Gateway(gateway) => {
            if gateway.spec.default_scope.is_some() {
                say("spec.defaultScope".to_owned(), "default Gateways are not implemented", &mut out);
            }
        }
        Typed::XBackendTrafficPolicy(policy) if policy.spec.session_persistence.is_some() => {
            say("spec.sessionPersistence".to_owned(), NO_SESSIONS, &mut out);
        }
        Typed::BackendTlsPolicy(policy) if !policy.spec.options.is_empty() => {
            say("spec.options".to_owned(), "no option is known", &mut out);
        }
        _ => {}
    }
    out
}

fn default_gateways(scope: Option<&String>, out: &mut Vec<Finding>) {
    if scope.is_some_and(|s| s != "None") {
        out.push(Finding::new("spec.useDefaultGateways", "default Gateways are not implemented"));
    }
}
