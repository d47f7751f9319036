//! The rows of the kinds beside VirtualService and DestinationRule.

use serde_json::Value;

use super::{
    Field,
    table::{idle, no, partly, yes},
};

const NO_POLICY: &str = "access is not restricted yet";
const NO_TELEMETRY: &str = "workloads are selected by `selector` alone";
const NO_INBOUND_KEEPALIVE: &str = "the node's own setting holds towards pods";
const NO_INBOUND_HTTP: &str = "the workload's node hands on what comes; see `http` of DestinationRules";
const INBOUND_POOL: &str = "at the workload's node, for connections from other nodes";
const NO_ENVOY: &str = "there is no Envoy to be patched; the object is refused as a whole";

fn is_constant(text: &str) -> bool {
    let text = text.trim();
    let inner = |quote| text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote));
    inner('\'').or_else(|| inner('"')).is_some()
}

fn is_rare_filter(text: &str) -> bool {
    let rare =
        ["headers", "metadata", "filter_state", "connection.mtls", "destination.", "source.", "upstream."];
    rare.iter().any(|word| text.contains(word))
}

fn is_loopback(endpoint: &str) -> bool {
    endpoint.starts_with("127.") || endpoint.starts_with("[::1]")
}

/// An address inside a pod.
fn is_private(bind: &str) -> bool {
    bind.starts_with("unix://") || bind.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

const CAPTURE: &str = "`NONE` is not: the calls of all workloads of a node are captured";

fn is_socket(value: &Value) -> bool {
    value.as_str().is_some_and(|a| a.starts_with("unix://"))
}

pub(super) static GATEWAY: &[Field] = &[
    yes("selector", "labels of a proxy in gateway mode; a Node or Pod with them gets the keys"),
    yes("servers", "listeners change without a dropped connection"),
    partly("servers[].bind", "sockets (`unix://`) are not opened", is_socket),
    yes("servers[].port", ""),
    partly(
        "servers[].port.protocol",
        "MONGO is bytes, without statistics of its own (REDIS and MYSQL are, as in Istio where their filters are off)",
        |v| v.as_str().is_some_and(|p| p.eq_ignore_ascii_case("MONGO")),
    ),
    idle("servers[].port.targetPort", "deprecated; without effect, as in Istio"),
    idle("servers[].defaultEndpoint", "without effect, as in Istio"),
    yes("servers[].tls", "keys by secret or file, read again when they change"),
    partly("servers[].tls.minProtocolVersion", "at least 1.2", |v| v == "TLSV1_0" || v == "TLSV1_1"),
    partly("servers[].tls.maxProtocolVersion", "at least 1.2", |v| v == "TLSV1_0" || v == "TLSV1_1"),
];

pub(super) static SERVICE_ENTRY: &[Field] = &[
    yes(
        "hosts",
        "of ServiceEntries in several namespaces for one host that of the client's own counts, else the oldest that it may use",
    ),
    yes("addresses", "without one, a host gets one from 240.240.0.0/16"),
    yes("ports", ""),
    yes("location", ""),
    yes("resolution", ""),
    yes("endpoints", ""),
    partly("endpoints[].address", "sockets (`unix://`) are left out", is_socket),
    yes("workloadSelector", "Pods and WorkloadEntries"),
    yes("exportTo", ""),
    yes("subjectAltNames", ""),
];

pub(super) static WORKLOAD_ENTRY: &[Field] = &[
    partly("address", "sockets (`unix://`) are left out", is_socket),
    yes("ports", ""),
    yes("labels", ""),
    yes("network", "told to nodes as part of the locality"),
    yes("locality", ""),
    yes("weight", ""),
    yes("serviceAccount", ""),
];

pub(super) static WORKLOAD_GROUP: &[Field] = &[
    no("metadata", "workloads are not registered by themselves"),
    no("template", "workloads are not registered by themselves"),
    no("probe", "workloads outside of Kubernetes are not probed"),
];

pub(super) static SIDECAR: &[Field] = &[
    yes("workloadSelector", ""),
    yes(
        "egress",
        "decided at the node by the calling workload; `namespace/host`, with `~` in front to leave out",
    ),
    idle("egress[].port.targetPort", "without effect, as in Istio"),
    partly(
        "egress[].bind",
        "an address that is called; the node does not listen at loopback addresses of pods, nor at sockets (`unix://`)",
        |v| v.as_str().is_some_and(is_private),
    ),
    partly("egress[].captureMode", CAPTURE, |v| v == "NONE"),
    yes("ingress", ""),
    yes("ingress[].port", "calls to it go to the port of `defaultEndpoint`"),
    no("ingress[].port.name", "statistics do not have it"),
    idle("ingress[].port.targetPort", "without effect, as in Istio"),
    partly("ingress[].bind", "the pod's address, or any; the node calls pods at no other", |v| {
        v.as_str().is_some_and(is_private)
    }),
    partly("ingress[].captureMode", CAPTURE, |v| v == "NONE"),
    partly(
        "ingress[].defaultEndpoint",
        "its port, at the pod's own address: a process that listens on loopback alone is not reached; sockets \
         (`unix://`) are not either",
        |v| v.as_str().is_some_and(|e| e.starts_with("unix://") || is_loopback(e)),
    ),
    no("ingress[].tls", "the way between nodes is encrypted; TLS of clients goes on to the workload"),
    yes("ingress[].connectionPool", "as `inboundConnectionPool`, for the port"),
    no("ingress[].connectionPool.tcp.tcpKeepalive", NO_INBOUND_KEEPALIVE),
    no("ingress[].connectionPool.http", NO_INBOUND_HTTP),
    yes("inboundConnectionPool", ""),
    yes("inboundConnectionPool.tcp.maxConnections", INBOUND_POOL),
    yes("inboundConnectionPool.tcp.connectTimeout", INBOUND_POOL),
    yes("inboundConnectionPool.tcp.idleTimeout", INBOUND_POOL),
    yes("inboundConnectionPool.tcp.maxConnectionDuration", INBOUND_POOL),
    no("inboundConnectionPool.tcp.tcpKeepalive", NO_INBOUND_KEEPALIVE),
    no(
        "inboundConnectionPool.http",
        "the workload's node hands on what comes; see `http` of DestinationRules",
    ),
    yes("outboundTrafficPolicy", ""),
];

pub(super) static TELEMETRY: &[Field] = &[
    yes("selector", "by the calling workload on its node, by the called one on its own"),
    no("targetRef", NO_TELEMETRY),
    no("targetRefs", NO_TELEMETRY),
    yes("tracing", "where the node has a collector (`tracing.endpoint`)"),
    yes("tracing[].providers", "the collector's name on the node (`tracing.provider`), or another's"),
    no("tracing[].useRequestIdForTraceSampling", "the trace's own headers decide"),
    no("tracing[].enableIstioTags", "Istio's tags are always set"),
    no("tracing[].disableContextPropagation", "headers are passed on"),
    yes("metrics", ""),
    no("metrics[].providers", "metrics are those of `/metrics`"),
    no("metrics[].reportingInterval", "metrics are those of `/metrics`"),
    yes("metrics[].overrides[].match.mode", ""),
    partly(
        "metrics[].overrides[].tagOverrides{}.value",
        "a constant (`'text'`), for a standard label",
        |v| !v.as_str().is_some_and(is_constant),
    ),
    yes("accessLogging", "switches the node's log on and off, and thins it out"),
    yes(
        "accessLogging[].providers",
        "the log's name on the node (`accessLog.provider`, `envoy`), or another's",
    ),
    yes("accessLogging[].match.mode", ""),
    partly(
        "accessLogging[].filter.expression",
        "attributes of request and response but headers; otherwise everything is logged, and the node says so",
        |v| v.as_str().is_some_and(is_rare_filter),
    ),
];

pub(super) static PEER_AUTHENTICATION: &[Field] = &[
    no("selector", NO_POLICY),
    no(
        "mtls",
        "nodes always authenticate and encrypt between each other; plaintext from outside is not refused yet",
    ),
    no("portLevelMtls", NO_POLICY),
];

pub(super) static REQUEST_AUTHENTICATION: &[Field] = &[
    no("selector", NO_POLICY),
    no("targetRef", NO_POLICY),
    no("targetRefs", NO_POLICY),
    no("jwtRules", "tokens are not looked at yet"),
];

pub(super) static AUTHORIZATION_POLICY: &[Field] = &[
    no("selector", NO_POLICY),
    no("targetRef", NO_POLICY),
    no("targetRefs", NO_POLICY),
    no("rules", NO_POLICY),
    no("action", NO_POLICY),
    no("provider", NO_POLICY),
];

pub(super) static ENVOY_FILTER: &[Field] = &[
    no("workloadSelector", NO_ENVOY),
    no("targetRefs", NO_ENVOY),
    no("configPatches", NO_ENVOY),
    no("priority", NO_ENVOY),
];

pub(super) static PROXY_CONFIG: &[Field] = &[
    no("selector", "proxies belong to nodes and have their own settings"),
    no("concurrency", "see the node's own settings"),
    no("environmentVariables", "see the node's own settings"),
    no("image", "see the node's own settings"),
];

pub(super) static WASM_PLUGIN: &[Field] = &[
    no("selector", NO_WASM),
    no("targetRef", NO_WASM),
    no("targetRefs", NO_WASM),
    no("url", NO_WASM),
    no("sha256", NO_WASM),
    no("imagePullPolicy", NO_WASM),
    no("imagePullSecret", NO_WASM),
    no("verificationKey", NO_WASM),
    no("pluginConfig", NO_WASM),
    no("pluginName", NO_WASM),
    no("phase", NO_WASM),
    no("priority", NO_WASM),
    no("failStrategy", NO_WASM),
    no("vmConfig", NO_WASM),
    no("match", NO_WASM),
    no("type", NO_WASM),
];

const NO_WASM: &str = "nodes run no WebAssembly";
