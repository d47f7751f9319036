//! Fields of Gateway API that this mesh accepts and does not honour; every one is said.

use super::{
    objects::Typed,
    types::{Filter, Listener},
};
use crate::parse::Finding;

const NO_SESSIONS: &str =
    "session persistence is not implemented; requests are balanced as if it were absent";
const NO_EXTENSION: &str = "no extension is implemented; the rule is invalid";
const NOTHING_DEPLOYED: &str =
    "nothing is deployed for a Gateway: labels and annotations are those of what serves it";
const NO_OPTION: &str = "no option of this name is known";
/// Options of listeners that have a meaning.
const OPTIONS: [&str; 3] = [
    "gateway.istio.io/tls-terminate-mode",
    "gateway.istio.io/tls-cipher-suites",
    "gateway.istio.io/listener-protocol",
];

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
            extensions(route.spec.rules.iter().map(|r| r.filters.as_slice()), &mut out);
            default_gateways(route.spec.use_default_gateways.as_ref(), &mut out);
        }
        Typed::GrpcRoute(route) => {
            out.extend(sessions(route.spec.rules.iter().map(|r| r.session_persistence.is_some())));
            extensions(route.spec.rules.iter().map(|r| r.filters.as_slice()), &mut out);
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
            let wanted = gateway.spec.infrastructure.as_ref();
            if wanted.is_some_and(|i| !i.labels.is_empty()) {
                say("spec.infrastructure.labels".to_owned(), NOTHING_DEPLOYED, &mut out);
            }
            if wanted.is_some_and(|i| !i.annotations.is_empty()) {
                say("spec.infrastructure.annotations".to_owned(), NOTHING_DEPLOYED, &mut out);
            }
            options(&gateway.spec.listeners, &mut out);
        }
        Typed::ListenerSet(set) => options(&set.spec.listeners, &mut out),
        Typed::GatewayClass(class) if class.spec.parameters_ref.is_some() => {
            say("spec.parametersRef".to_owned(), "classes have no parameters here", &mut out);
        }
        Typed::XBackendTrafficPolicy(policy) => {
            if policy.spec.session_persistence.is_some() {
                say("spec.sessionPersistence".to_owned(), NO_SESSIONS, &mut out);
            }
            let rate = policy.spec.retry_constraint.as_ref().and_then(|c| c.min_retry_rate.as_ref());
            if rate.is_some_and(|r| r.interval.is_some()) {
                let path = "spec.retryConstraint.minRetryRate.interval".to_owned();
                say(path, "so many retries are allowed at a time, whatever the interval is", &mut out);
            }
        }
        Typed::XBackend(backend) => {
            if backend.spec.protocol.is_some() {
                say("spec.protocol".to_owned(), "the port of a ServiceEntry says what is spoken", &mut out);
            }
            let tls = backend.spec.tls.as_ref();
            if tls.is_some_and(|t| t.client_certificate_ref.is_some()) {
                let path = "spec.tls.clientCertificateRef".to_owned();
                say(path, "only a Gateway's own certificate is shown to backends", &mut out);
            }
        }
        Typed::BackendTlsPolicy(policy) if !policy.spec.options.is_empty() => {
            say("spec.options".to_owned(), "no option is known", &mut out);
        }
        _ => {}
    }
    out
}

/// Filters that nobody here implements.
fn extensions<'a>(rules: impl Iterator<Item = &'a [Filter]>, out: &mut Vec<Finding>) {
    for (i, filters) in rules.enumerate() {
        for (f, filter) in filters.iter().enumerate() {
            if matches!(filter.kind.as_str(), "ExtensionRef" | "ExternalAuth") {
                out.push(Finding::new(format!("spec.rules[{i}].filters[{f}]"), NO_EXTENSION));
            }
        }
    }
}

fn options(listeners: &[Listener], out: &mut Vec<Finding>) {
    for (i, listener) in listeners.iter().enumerate() {
        let named = listener.tls.iter().flat_map(|tls| tls.options.keys());
        for name in named.filter(|name| !OPTIONS.contains(&name.as_str())) {
            out.push(Finding::new(format!("spec.listeners[{i}].tls.options[{name:?}]"), NO_OPTION));
        }
    }
}

fn default_gateways(scope: Option<&String>, out: &mut Vec<Finding>) {
    if scope.is_some_and(|s| s != "None") {
        out.push(Finding::new("spec.useDefaultGateways", "default Gateways are not implemented"));
    }
}
