//! The rows of the kinds beside VirtualService and DestinationRule.

use serde_json::Value;

use super::{
    Field,
    table::{no, partly, yes},
};

const NO_GATEWAY: &str = "there is no ingress gateway yet";
const NO_EXTERNAL: &str = "nodes do not call services outside of the mesh by rule yet";
const NO_SCOPE: &str = "every workload may call everything";
const NO_POLICY: &str = "access is not restricted yet";
const NO_TELEMETRY: &str = "metrics and logs are the same for all";
const NO_INBOUND: &str = "the owner node hands calls to the workload's own port";
const NO_ENVOY: &str = "there is no Envoy to be patched; the object is refused as a whole";

fn is_socket(value: &Value) -> bool {
    value.as_str().is_some_and(|a| a.starts_with("unix://"))
}

pub(super) static GATEWAY: &[Field] = &[no("servers", NO_GATEWAY), no("selector", NO_GATEWAY)];

pub(super) static SERVICE_ENTRY: &[Field] = &[
    no("hosts", NO_EXTERNAL),
    no("addresses", NO_EXTERNAL),
    no("ports", NO_EXTERNAL),
    no("location", NO_EXTERNAL),
    no("resolution", NO_EXTERNAL),
    no("endpoints", NO_EXTERNAL),
    partly("endpoints[].address", "sockets (`unix://`) are left out", is_socket),
    no("workloadSelector", NO_EXTERNAL),
    no("exportTo", NO_EXTERNAL),
    no("subjectAltNames", NO_EXTERNAL),
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
    no("workloadSelector", NO_SCOPE),
    no("egress", NO_SCOPE),
    no("ingress", NO_INBOUND),
    no("inboundConnectionPool", NO_INBOUND),
    no("outboundTrafficPolicy", NO_SCOPE),
];

pub(super) static TELEMETRY: &[Field] = &[
    no("selector", NO_TELEMETRY),
    no("targetRef", NO_TELEMETRY),
    no("targetRefs", NO_TELEMETRY),
    no("tracing", NO_TELEMETRY),
    no("metrics", NO_TELEMETRY),
    no("accessLogging", NO_TELEMETRY),
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
