//! The rows of MeshConfig.

use serde_json::Value;

use super::{
    Field, Status, is_unset,
    table::{idle, no, partly, yes},
};

const NODE: &str = "see the node's own settings";
const IDENTITY: &str = "see the controller's own settings";

/// Settings by name; what is within one has no row of its own.
pub static MESH_CONFIG: &[Field] = &[
    partly(
        "outboundTrafficPolicy",
        "unknown hosts go to the address that was called, not to an `egressProxy`",
        |v| v.get("egressProxy").is_some(),
    ),
    yes("defaultServiceExportTo", ""),
    yes("defaultVirtualServiceExportTo", ""),
    yes("defaultDestinationRuleExportTo", ""),
    yes("defaultHttpRetryPolicy", ""),
    yes("connectTimeout", ""),
    yes("tcpKeepalive", ""),
    yes("h2UpgradePolicy", ""),
    yes("localityLbSetting", ""),
    partly("defaultTrafficPolicy", "`connectionPool` and `outlierDetection`", |v| {
        v.as_object().is_some_and(|m| m.keys().any(|k| k != "connectionPool" && k != "outlierDetection"))
    }),
    no("accessLogFile", NODE),
    no("accessLogFormat", NODE),
    no("accessLogEncoding", NODE),
    no("enableEnvoyAccessLogService", "there is no Envoy"),
    idle("disableEnvoyListenerLog", "there is no Envoy"),
    no("enableTracing", NODE),
    no("defaultConfig", NODE),
    no("extensionProviders", NODE),
    no("defaultProviders", NODE),
    no("trustDomain", IDENTITY),
    no("trustDomainAliases", IDENTITY),
    no("caCertificates", IDENTITY),
    no("certificates", IDENTITY),
    no("ca", IDENTITY),
    no("rootNamespace", IDENTITY),
    partly("enableAutoMtls", "nodes always authenticate and encrypt between each other", |v| {
        v == &Value::Bool(false)
    }),
    no("meshMTLS", "TLS 1.3 between nodes"),
    no("tlsDefaults", "see `tls` of Gateways and DestinationRules"),
    no("inboundTrafficPolicy", "the owner node hands calls to the workload's own port"),
    no("discoverySelectors", "all namespaces are seen"),
    partly("pathNormalization", "dot segments are removed before rules are asked", |v| {
        !v.get("normalization").and_then(Value::as_str).is_none_or(|n| matches!(n, "DEFAULT" | "BASE"))
    }),
    no("dnsRefreshRate", "names are asked again when their answer has aged"),
    no("serviceSettings", "there is one cluster"),
    no("configSources", IDENTITY),
    no("ingressClass", "Ingress is not read"),
    no("ingressService", "Ingress is not read"),
    no("ingressControllerMode", "Ingress is not read"),
    no("ingressSelector", "Ingress is not read"),
    no("proxyListenPort", NODE),
    no("proxyInboundListenPort", NODE),
    no("proxyHttpPort", NODE),
    no("inboundClusterStatName", "names of clusters in logs are Istio's default"),
    no("outboundClusterStatName", "names of clusters in logs are Istio's default"),
    idle("enablePrometheusMerge", "workloads keep their own metrics"),
    idle("verifyCertificateAtClient", "certificates of servers are always verified"),
    no("thriftConfig", "there is no Thrift"),
];

/// Why a setting has no effect, or not the full one.
pub(crate) fn unsupported_setting(name: &str, value: &Value) -> Option<String> {
    let says = |f: &&Field| f.path == name && (f.has_values() || !is_unset(value));
    let field = MESH_CONFIG.iter().find(says)?;
    let applies = match field.status {
        Status::Honoured | Status::Idle => false,
        Status::Partly => field.when.is_some_and(|when| when(value)),
        Status::Ignored => true,
    };
    applies.then(|| field.note.to_owned())
}
