//! The rows.

use serde_json::Value;

use super::{
    Field,
    Status::{Honoured, Idle, Ignored, Partly},
};
use crate::names::is_claim;

pub(super) const fn yes(path: &'static str, note: &'static str) -> Field {
    Field { path, status: Honoured, note, when: None }
}

pub(super) const fn no(path: &'static str, note: &'static str) -> Field {
    Field { path, status: Ignored, note, when: None }
}

/// Without effect in Istio either.
pub(super) const fn idle(path: &'static str, note: &'static str) -> Field {
    Field { path, status: Idle, note, when: None }
}

pub(super) const fn partly(path: &'static str, note: &'static str, when: fn(&Value) -> bool) -> Field {
    Field { path, status: Partly, note, when: Some(when) }
}

const COMMANDS: &str = "Envoy's operators of addresses, headers, start time, protocol, status, route and cluster; \
others are sent as they stand (`%%` is a percent sign)";

/// Operators that have a value where headers are set. Others stay as they are written.
pub const HEADER_COMMANDS: [&str; 20] = [
    "REQ",
    "RESP",
    "START_TIME",
    "PROTOCOL",
    "RESPONSE_CODE",
    "ROUTE_NAME",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_CLUSTER_RAW",
    "UPSTREAM_HOST",
    "UPSTREAM_REMOTE_ADDRESS",
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_REMOTE_PORT",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_PORT",
];

/// Whether a value has an operator that is not filled in.
fn has_command(value: &Value) -> bool {
    let mut rest = value.as_str().unwrap_or_default();
    while let Some((_, after)) = rest.split_once('%') {
        rest = match after.strip_prefix('%') {
            Some(after) => after,
            None => {
                let end = after.find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_');
                if !HEADER_COMMANDS.contains(&&after[..end.unwrap_or(after.len())]) {
                    return true;
                }
                // Arguments may have percent signs of their own.
                let from = after.find('(').filter(|at| Some(*at) == end).and_then(|_| after.find(')'));
                let from = from.unwrap_or(0);
                after[from..].split_once('%').map_or("", |(_, after)| after)
            }
        };
    }
    false
}

const NO_CLAIMS: &str = "tokens are not looked at: a claim (`@request.auth.claims`) is never there, as in Istio without a \
                         RequestAuthentication; a header of that name from a client counts for nothing";

fn has_claim(value: &Value) -> bool {
    value.as_object().is_some_and(|map| map.keys().any(|k| is_claim(k)))
}

fn rare_condition(value: &Value) -> bool {
    let rare = ["http3-post-connect-failure", "retriable-headers"];
    value.as_str().is_some_and(|text| text.split(',').any(|word| rare.contains(&word.trim())))
}

pub(super) static VIRTUAL_SERVICE: &[Field] = &[
    yes("hosts", "short names, full names, wildcards; for unknown hosts, port 80"),
    yes("gateways", "`mesh`, and Gateways of any namespace"),
    yes("exportTo", ""),
    yes("http", "detected, or by port name or `appProtocol`"),
    yes("http[].name", ""),
    yes("http[].match", ""),
    yes("http[].match[].name", ""),
    yes("http[].match[].uri", ""),
    yes("http[].match[].ignoreUriCase", ""),
    yes("http[].match[].scheme", ""),
    yes("http[].match[].method", ""),
    yes("http[].match[].authority", ""),
    partly("http[].match[].headers", NO_CLAIMS, has_claim),
    partly("http[].match[].withoutHeaders", NO_CLAIMS, has_claim),
    yes("http[].match[].queryParams", ""),
    yes("http[].match[].port", ""),
    yes("http[].match[].sourceLabels", ""),
    yes("http[].match[].sourceNamespace", ""),
    yes("http[].match[].gateways", ""),
    yes("http[].match[].statPrefix", "label of `selvage_route_requests_total`, for at most 256 names"),
    yes("http[].route", "weights, subsets, ports"),
    yes("http[].route[].headers", "see `http[].headers`"),
    partly("http[].route[].headers.request.set{}", COMMANDS, has_command),
    partly("http[].route[].headers.request.add{}", COMMANDS, has_command),
    partly("http[].route[].headers.response.set{}", COMMANDS, has_command),
    partly("http[].route[].headers.response.add{}", COMMANDS, has_command),
    yes("http[].redirect", ""),
    yes("http[].directResponse", ""),
    yes("http[].delegate", ""),
    yes("http[].rewrite", "`uri`, `uriRegexRewrite`, `authority`"),
    yes("http[].timeout", ""),
    yes(
        "http[].retries",
        "a budget guards against storms: a node retries at most 20 % of its requests to a destination, or 30 in ten seconds",
    ),
    partly(
        "http[].retries.retryOn",
        "`http3-post-connect-failure` and `retriable-headers` never hold",
        rare_condition,
    ),
    yes("http[].retries.retryRemoteLocalities", ""),
    yes("http[].fault", ""),
    no("http[].fault.delay.exponentialDelay", "not implemented by Istio either"),
    no("http[].fault.abort.http2Error", "not implemented by Istio either"),
    yes("http[].mirror", ""),
    yes("http[].mirrors", ""),
    yes("http[].mirrorPercent", "deprecated"),
    yes("http[].mirror_percent", "as `mirrorPercent`"),
    yes("http[].mirrorPercentage", ""),
    yes("http[].corsPolicy", ""),
    yes("http[].headers", "at rule and destination level; setting `host` rewrites the authority"),
    partly("http[].headers.request.set{}", COMMANDS, has_command),
    partly("http[].headers.request.add{}", COMMANDS, has_command),
    partly("http[].headers.response.set{}", COMMANDS, has_command),
    partly("http[].headers.response.add{}", COMMANDS, has_command),
    yes("tls", "by server name, address, port and client"),
    yes("tls[].match[].gateways", ""),
    yes("tcp", "by address, port and client"),
    yes("tcp[].match[].gateways", ""),
    idle("tcp[].match[].sourceSubnet", "without effect, as in Istio"),
];

pub(super) static DESTINATION_RULE: &[Field] = &[
    yes("host", "short names, full names, wildcards"),
    yes("exportTo", ""),
    yes("workloadSelector", ""),
    yes("subsets", ""),
    yes("trafficPolicy", "rules for one host are merged, and inherited by port and subset, as in Istio"),
    yes("trafficPolicy.portLevelSettings", "replaces the blocks of the rule, also those that it leaves out"),
    yes(
        "trafficPolicy.loadBalancer.simple",
        "with `PASSTHROUGH` the endpoint that was called; behind a virtual address one by chance, as kube-proxy has it",
    ),
    yes("trafficPolicy.loadBalancer.consistentHash", "ring and Maglev; each node has the same tables"),
    yes(
        "trafficPolicy.loadBalancer.localityLbSetting",
        "region, zone, and the site (NodeGroup) in the place of the sub-zone; the client's locality is its node's",
    ),
    yes("trafficPolicy.loadBalancer.zoneAwareLbSetting", ""),
    yes("trafficPolicy.loadBalancer.warmup", "by the time for which this node has known the endpoint"),
    yes("trafficPolicy.loadBalancer.warmupDurationSecs", "deprecated; as `warmup.duration`"),
    yes("trafficPolicy.connectionPool.tcp.connectTimeout", ""),
    yes("trafficPolicy.connectionPool.tcp.maxConnections", "for each node"),
    yes("trafficPolicy.connectionPool.tcp.idleTimeout", ""),
    yes("trafficPolicy.connectionPool.tcp.tcpKeepalive", ""),
    yes("trafficPolicy.connectionPool.tcp.maxConnectionDuration", ""),
    yes("trafficPolicy.connectionPool.http.http1MaxPendingRequests", "for each node"),
    yes("trafficPolicy.connectionPool.http.http2MaxRequests", "for each node"),
    yes("trafficPolicy.connectionPool.http.maxRequestsPerConnection", ""),
    yes("trafficPolicy.connectionPool.http.maxRetries", "for each node"),
    yes("trafficPolicy.connectionPool.http.idleTimeout", ""),
    yes("trafficPolicy.connectionPool.http.h2UpgradePolicy", ""),
    yes("trafficPolicy.connectionPool.http.useClientProtocol", ""),
    yes("trafficPolicy.connectionPool.http.maxConcurrentStreams", ""),
    yes("trafficPolicy.connectionPool.http.http2KeepAlive", ""),
    yes("trafficPolicy.outlierDetection.consecutive5xxErrors", "each worker of a node counts for itself"),
    yes("trafficPolicy.outlierDetection.consecutiveGatewayErrors", "each worker of a node counts for itself"),
    yes("trafficPolicy.outlierDetection.interval", ""),
    yes("trafficPolicy.outlierDetection.baseEjectionTime", ""),
    yes("trafficPolicy.outlierDetection.maxEjectionPercent", ""),
    yes("trafficPolicy.outlierDetection.minHealthPercent", ""),
    idle("trafficPolicy.outlierDetection.consecutiveErrors", "deprecated; without effect, as in Istio"),
    yes("trafficPolicy.outlierDetection.splitExternalLocalOriginErrors", ""),
    yes("trafficPolicy.outlierDetection.consecutiveLocalOriginFailures", ""),
    yes("trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes", ""),
    yes(
        "trafficPolicy.tls.mode",
        "`ISTIO_MUTUAL` is what nodes do between each other always; towards endpoints in the mesh nothing is added",
    ),
    yes("trafficPolicy.tls.clientCertificate", "a file on the node"),
    yes("trafficPolicy.tls.privateKey", "a file on the node"),
    yes("trafficPolicy.tls.caCertificates", "a file on the node; the system's when absent"),
    yes(
        "trafficPolicy.tls.credentialName",
        "sent to nodes with workloads of the rule's namespace that its selector chooses, and to no other",
    ),
    yes("trafficPolicy.tls.subjectAltNames", ""),
    yes("trafficPolicy.tls.sni", ""),
    yes("trafficPolicy.tls.insecureSkipVerify", ""),
    yes("trafficPolicy.tls.caCrl", "a file on the node"),
    yes("trafficPolicy.tunnel", ""),
    yes("trafficPolicy.proxyProtocol", ""),
    yes("trafficPolicy.retryBudget", "for each node; without it 20 %, or 30 in ten seconds"),
];
