//! The rows.

use serde_json::Value;

use super::{
    Field,
    Status::{Honoured, Ignored, Partly},
};

pub(super) const fn yes(path: &'static str, note: &'static str) -> Field {
    Field { path, status: Honoured, note, when: None }
}

pub(super) const fn no(path: &'static str, note: &'static str) -> Field {
    Field { path, status: Ignored, note, when: None }
}

pub(super) const fn partly(path: &'static str, note: &'static str, when: fn(&Value) -> bool) -> Field {
    Field { path, status: Partly, note, when: Some(when) }
}

const NO_GATEWAY: &str = "rules for `mesh` are honoured; there is no ingress gateway yet";
const NO_COMMANDS: &str =
    "sent as it is: `%COMMAND%` is not replaced by request data (`%%` is a percent sign)";

fn names_gateways(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().any(|g| g != "mesh"))
}

fn has_command(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.replace("%%", "").contains('%'))
}

fn is_claim(value: &Value) -> bool {
    value
        .as_object()
        .is_some_and(|map| map.keys().any(|k| k.to_ascii_lowercase().starts_with("@request.auth")))
}

fn originates_tls(value: &Value) -> bool {
    value == "SIMPLE" || value == "MUTUAL"
}

fn rare_condition(value: &Value) -> bool {
    let rare = ["http3-post-connect-failure", "retriable-headers"];
    value.as_str().is_some_and(|text| text.split(',').any(|word| rare.contains(&word.trim())))
}

pub(super) static VIRTUAL_SERVICE: &[Field] = &[
    yes("hosts", "short names, full names, wildcards; for unknown hosts, port 80"),
    partly("gateways", NO_GATEWAY, names_gateways),
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
    partly("http[].match[].headers", "token claims (`@request.auth.claims`) never match", is_claim),
    partly("http[].match[].withoutHeaders", "token claims (`@request.auth.claims`) never match", is_claim),
    yes("http[].match[].queryParams", ""),
    yes("http[].match[].port", ""),
    yes("http[].match[].sourceLabels", ""),
    yes("http[].match[].sourceNamespace", ""),
    partly("http[].match[].gateways", NO_GATEWAY, names_gateways),
    no("http[].match[].statPrefix", "there are no statistics for single routes"),
    yes("http[].route", "weights, subsets, ports"),
    yes("http[].route[].headers", "see `http[].headers`"),
    partly("http[].route[].headers.request.set{}", NO_COMMANDS, has_command),
    partly("http[].route[].headers.request.add{}", NO_COMMANDS, has_command),
    partly("http[].route[].headers.response.set{}", NO_COMMANDS, has_command),
    partly("http[].route[].headers.response.add{}", NO_COMMANDS, has_command),
    yes("http[].redirect", ""),
    yes("http[].directResponse", ""),
    yes("http[].delegate", ""),
    yes("http[].rewrite", "`uri`, `uriRegexRewrite`, `authority`"),
    yes("http[].timeout", ""),
    yes(
        "http[].retries",
        "a budget guards against storms: a node's worker retries at most 20 % of its requests, or 100 in ten seconds",
    ),
    partly(
        "http[].retries.retryOn",
        "`http3-post-connect-failure` and `retriable-headers` never hold",
        rare_condition,
    ),
    no("http[].retries.retryRemoteLocalities", "retries use any endpoint that was not tried"),
    yes("http[].fault", ""),
    no("http[].fault.delay.exponentialDelay", "not implemented by Istio either"),
    no("http[].fault.abort.http2Error", "not implemented by Istio either"),
    yes("http[].mirror", ""),
    yes("http[].mirrors", ""),
    yes("http[].mirrorPercent", "deprecated"),
    yes("http[].mirrorPercentage", ""),
    yes("http[].corsPolicy", ""),
    yes("http[].headers", "at rule and destination level; setting `host` rewrites the authority"),
    partly("http[].headers.request.set{}", NO_COMMANDS, has_command),
    partly("http[].headers.request.add{}", NO_COMMANDS, has_command),
    partly("http[].headers.response.set{}", NO_COMMANDS, has_command),
    partly("http[].headers.response.add{}", NO_COMMANDS, has_command),
    yes("tls", "by server name, address, port and client"),
    partly("tls[].match[].gateways", NO_GATEWAY, names_gateways),
    yes("tcp", "by address, port and client"),
    partly("tcp[].match[].gateways", NO_GATEWAY, names_gateways),
    yes("tcp[].match[].sourceSubnet", "without effect, as in Istio"),
];

pub(super) static DESTINATION_RULE: &[Field] = &[
    yes("host", "short names, full names, wildcards"),
    yes("exportTo", ""),
    yes("workloadSelector", ""),
    yes("subsets", ""),
    yes("trafficPolicy", "rules for one host are merged, and inherited by port and subset, as in Istio"),
    yes("trafficPolicy.portLevelSettings", "replaces the blocks of the rule, also those that it leaves out"),
    partly("trafficPolicy.loadBalancer.simple", "`PASSTHROUGH` chooses an endpoint by chance", |v| {
        v == "PASSTHROUGH"
    }),
    no("trafficPolicy.loadBalancer.consistentHash", "endpoints are chosen by least request"),
    no("trafficPolicy.loadBalancer.localityLbSetting", "localities do not count"),
    no("trafficPolicy.loadBalancer.zoneAwareLbSetting", "zones do not count"),
    no("trafficPolicy.loadBalancer.warmup", "new endpoints get their full share at once"),
    no("trafficPolicy.loadBalancer.warmupDurationSecs", "new endpoints get their full share at once"),
    yes("trafficPolicy.connectionPool.tcp.connectTimeout", ""),
    yes("trafficPolicy.connectionPool.tcp.maxConnections", "for each node"),
    yes("trafficPolicy.connectionPool.tcp.idleTimeout", ""),
    no("trafficPolicy.connectionPool.tcp.tcpKeepalive", "probes are those of the node's own settings"),
    no("trafficPolicy.connectionPool.tcp.maxConnectionDuration", "connections live as long as they are used"),
    yes("trafficPolicy.connectionPool.http.http1MaxPendingRequests", "for each node"),
    yes("trafficPolicy.connectionPool.http.http2MaxRequests", "for each node"),
    yes("trafficPolicy.connectionPool.http.maxRequestsPerConnection", ""),
    yes("trafficPolicy.connectionPool.http.maxRetries", "for each node"),
    yes("trafficPolicy.connectionPool.http.idleTimeout", ""),
    no("trafficPolicy.connectionPool.http.h2UpgradePolicy", "the protocol of the port is used"),
    no("trafficPolicy.connectionPool.http.useClientProtocol", "the protocol of the port is used"),
    no("trafficPolicy.connectionPool.http.maxConcurrentStreams", "the endpoint's own limit holds"),
    no("trafficPolicy.connectionPool.http.http2KeepAlive", "no pings are sent"),
    yes("trafficPolicy.outlierDetection.consecutive5xxErrors", "each worker of a node counts for itself"),
    yes("trafficPolicy.outlierDetection.consecutiveGatewayErrors", "each worker of a node counts for itself"),
    yes("trafficPolicy.outlierDetection.interval", ""),
    yes("trafficPolicy.outlierDetection.baseEjectionTime", ""),
    yes("trafficPolicy.outlierDetection.maxEjectionPercent", ""),
    yes("trafficPolicy.outlierDetection.minHealthPercent", ""),
    yes("trafficPolicy.outlierDetection.consecutiveErrors", "deprecated; without effect, as in Istio"),
    no(
        "trafficPolicy.outlierDetection.splitExternalLocalOriginErrors",
        "failed connections count as 5xx and gateway errors",
    ),
    no(
        "trafficPolicy.outlierDetection.consecutiveLocalOriginFailures",
        "failed connections count as 5xx and gateway errors",
    ),
    no("trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes", "all of 500 to 599 count"),
    partly(
        "trafficPolicy.tls.mode",
        "`DISABLE` and `ISTIO_MUTUAL` are honoured (nodes always authenticate and encrypt between each other); the \
         mesh does not open TLS towards the endpoint itself",
        originates_tls,
    ),
    no("trafficPolicy.tls.clientCertificate", "the mesh does not open TLS towards the endpoint itself"),
    no("trafficPolicy.tls.privateKey", "the mesh does not open TLS towards the endpoint itself"),
    no("trafficPolicy.tls.caCertificates", "the mesh does not open TLS towards the endpoint itself"),
    no("trafficPolicy.tls.credentialName", "the mesh does not open TLS towards the endpoint itself"),
    no("trafficPolicy.tls.subjectAltNames", "the mesh does not open TLS towards the endpoint itself"),
    no("trafficPolicy.tls.sni", "the mesh does not open TLS towards the endpoint itself"),
    no("trafficPolicy.tls.insecureSkipVerify", "the mesh does not open TLS towards the endpoint itself"),
    no("trafficPolicy.tls.caCrl", "the mesh does not open TLS towards the endpoint itself"),
    no("trafficPolicy.tunnel", "connections are not tunnelled through HTTP proxies"),
    no("trafficPolicy.proxyProtocol", "no PROXY header is sent"),
    no("trafficPolicy.retryBudget", "the budget is built in: 20 %, or 100 in ten seconds"),
];
