//! The objects that analysis looks at, by kind, read leniently: what is of the wrong type is as if it were not there,
//! because saying so is the task of validation.

use std::collections::BTreeMap;

use serde_json::Value;

/// The kinds that analyzers look at. `Gateway` is Istio's; Gateway API's is [`Kind::KubernetesGateway`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names are those of the kinds")]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    Secret,
    ConfigMap,
    Deployment,
    CustomResourceDefinition,
    MutatingWebhookConfiguration,
    ValidatingWebhookConfiguration,
    VirtualService,
    DestinationRule,
    Gateway,
    ServiceEntry,
    WorkloadEntry,
    WorkloadGroup,
    Sidecar,
    EnvoyFilter,
    ProxyConfig,
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
    Telemetry,
    WasmPlugin,
    TrafficExtension,
    GatewayClass,
    KubernetesGateway,
    ListenerSet,
    HttpRoute,
    GrpcRoute,
    TcpRoute,
    TlsRoute,
    UdpRoute,
    ReferenceGrant,
    BackendTlsPolicy,
}

use Kind as K;

/// Group, kind as in manifests, plural name.
const KINDS: [(Kind, &str, &str, &str); 35] = [
    (K::Namespace, "", "Namespace", "namespaces"),
    (K::Node, "", "Node", "nodes"),
    (K::Pod, "", "Pod", "pods"),
    (K::Service, "", "Service", "services"),
    (K::Secret, "", "Secret", "secrets"),
    (K::ConfigMap, "", "ConfigMap", "configmaps"),
    (K::Deployment, "apps", "Deployment", "deployments"),
    (
        K::CustomResourceDefinition,
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        "customresourcedefinitions",
    ),
    (
        K::MutatingWebhookConfiguration,
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
    ),
    (
        K::ValidatingWebhookConfiguration,
        "admissionregistration.k8s.io",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
    ),
    (K::VirtualService, "networking.istio.io", "VirtualService", "virtualservices"),
    (K::DestinationRule, "networking.istio.io", "DestinationRule", "destinationrules"),
    (K::Gateway, "networking.istio.io", "Gateway", "gateways"),
    (K::ServiceEntry, "networking.istio.io", "ServiceEntry", "serviceentries"),
    (K::WorkloadEntry, "networking.istio.io", "WorkloadEntry", "workloadentries"),
    (K::WorkloadGroup, "networking.istio.io", "WorkloadGroup", "workloadgroups"),
    (K::Sidecar, "networking.istio.io", "Sidecar", "sidecars"),
    (K::EnvoyFilter, "networking.istio.io", "EnvoyFilter", "envoyfilters"),
    (K::ProxyConfig, "networking.istio.io", "ProxyConfig", "proxyconfigs"),
    (K::AuthorizationPolicy, "security.istio.io", "AuthorizationPolicy", "authorizationpolicies"),
    (K::PeerAuthentication, "security.istio.io", "PeerAuthentication", "peerauthentications"),
    (K::RequestAuthentication, "security.istio.io", "RequestAuthentication", "requestauthentications"),
    (K::Telemetry, "telemetry.istio.io", "Telemetry", "telemetries"),
    (K::WasmPlugin, "extensions.istio.io", "WasmPlugin", "wasmplugins"),
    (K::TrafficExtension, "extensions.istio.io", "TrafficExtension", "trafficextensions"),
    (K::GatewayClass, GATEWAY_API, "GatewayClass", "gatewayclasses"),
    (K::KubernetesGateway, GATEWAY_API, "Gateway", "gateways"),
    (K::ListenerSet, GATEWAY_API, "ListenerSet", "listenersets"),
    (K::HttpRoute, GATEWAY_API, "HTTPRoute", "httproutes"),
    (K::GrpcRoute, GATEWAY_API, "GRPCRoute", "grpcroutes"),
    (K::TcpRoute, GATEWAY_API, "TCPRoute", "tcproutes"),
    (K::TlsRoute, GATEWAY_API, "TLSRoute", "tlsroutes"),
    (K::UdpRoute, GATEWAY_API, "UDPRoute", "udproutes"),
    (K::ReferenceGrant, GATEWAY_API, "ReferenceGrant", "referencegrants"),
    (K::BackendTlsPolicy, GATEWAY_API, "BackendTLSPolicy", "backendtlspolicies"),
];

const GATEWAY_API: &str = "gateway.networking.k8s.io";
/// Namespaces of the cluster itself; nothing in them concerns the mesh.
const LEFT_OUT: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

impl Kind {
    /// The kind of an object, if analysis looks at it.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        KINDS.iter().find(|(_, g, k, _)| *g == group && *k == kind).map(|(k, ..)| *k)
    }

    /// As in manifests.
    pub fn as_str(self) -> &'static str {
        KINDS.iter().find(|(k, ..)| *k == self).map_or("", |(_, _, name, _)| name)
    }

    /// Every kind as `kubectl get` names it: `plural.group`.
    pub fn resources() -> impl Iterator<Item = String> {
        KINDS.iter().map(|(_, group, _, plural)| match *group {
            "" => (*plural).to_owned(),
            group => format!("{plural}.{group}"),
        })
    }

    fn is_cluster_scoped(self) -> bool {
        matches!(
            self,
            K::Namespace
                | K::Node
                | K::CustomResourceDefinition
                | K::MutatingWebhookConfiguration
                | K::ValidatingWebhookConfiguration
                | K::GatewayClass
        )
    }
}

/// Namespace and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Empty for kinds without namespaces.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Name {
    /// A reference as users write it: `name` or `namespace/name`.
    pub(super) fn reference(text: &str, namespace: &str) -> Self {
        let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// One object.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, by default that of the world, and its name.
    pub name: Name,
    /// Kind, namespace as written, name.
    pub resource: String,
    /// As applied.
    pub value: Value,
}

impl Object {
    /// An object of which there is no manifest, such as the mesh's own settings.
    pub(super) fn unlisted(kind: &'static str, namespace: &str, name: &str, value: Value) -> Self {
        let name = Name { namespace: namespace.to_owned(), name: name.to_owned() };
        Self { kind: Kind::ConfigMap, resource: format!("{kind} {name}"), name, value }
    }

    /// Text at a JSON pointer; empty when there is none.
    pub(super) fn text(&self, pointer: &str) -> &str {
        text(&self.value, pointer)
    }

    /// Items of a list at a JSON pointer.
    pub(super) fn list(&self, pointer: &str) -> &[Value] {
        list(&self.value, pointer)
    }

    /// Labels at a JSON pointer.
    pub(super) fn map(&self, pointer: &str) -> Labels<'_> {
        map(&self.value, pointer)
    }

    pub(super) fn labels(&self) -> Labels<'_> {
        self.map("/metadata/labels")
    }

    pub(super) fn annotations(&self) -> Labels<'_> {
        self.map("/metadata/annotations")
    }

    /// Whether there is anything but null at a JSON pointer.
    pub(super) fn has(&self, pointer: &str) -> bool {
        self.value.pointer(pointer).is_some_and(|v| !v.is_null())
    }

    pub(super) fn namespace(&self) -> &str {
        &self.name.namespace
    }
}

/// Labels or annotations.
pub(super) type Labels<'a> = BTreeMap<&'a str, &'a str>;

pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn texts<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a str> {
    list(value, pointer).iter().filter_map(Value::as_str)
}

pub(super) fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

pub(super) fn map<'a>(value: &'a Value, pointer: &str) -> Labels<'a> {
    let entries = value.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))).collect()
}

/// Whether `labels` have all of `selector`; an empty selector selects everything.
pub(super) fn selects(selector: &Labels<'_>, labels: &Labels<'_>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// A selector as Kubernetes prints it.
pub(super) fn selector_text(selector: &Labels<'_>) -> String {
    selector.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

/// How analysis reads the world.
#[derive(Debug, Clone)]
pub struct Options {
    /// Namespace of objects that name none.
    pub default_namespace: String,
    /// Namespace of the control plane, whose rules apply to the whole mesh.
    pub root_namespace: String,
    /// Whether an ingress gateway named as Istio's is assumed, as it should be for files without a cluster.
    pub assume_ingress_gateway: bool,
    /// Now, in seconds since 1970, for the validity of certificates.
    pub now: i64,
    /// Istio's MeshConfig, when known.
    pub mesh_config: Value,
    /// Istio's MeshNetworks, when known.
    pub mesh_networks: Value,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_namespace: "default".to_owned(),
            root_namespace: "istio-system".to_owned(),
            assume_ingress_gateway: false,
            now: 0,
            mesh_config: Value::Null,
            mesh_networks: Value::Null,
        }
    }
}

/// All objects.
#[derive(Debug, Clone, Default)]
pub struct World {
    objects: BTreeMap<Kind, Vec<Object>>,
    /// Where each is in the list of its kind.
    places: BTreeMap<(Kind, Name), usize>,
    pub(super) options: Options,
}

impl World {
    /// An empty world.
    pub fn new(options: Options) -> Self {
        let mut world = Self { options, ..Self::default() };
        if world.options.assume_ingress_gateway {
            for object in ingress_gateway(&world.options.root_namespace) {
                world.add(object);
            }
        }
        world
    }

    /// Adds an object; `false` when analysis does not look at its kind. One that is there already is replaced, as
    /// `kubectl apply` does.
    pub fn add(&mut self, value: Value) -> bool {
        let Some(kind) = Kind::of(text(&value, "/apiVersion"), text(&value, "/kind")) else { return false };
        let name = text(&value, "/metadata/name").to_owned();
        let written = text(&value, "/metadata/namespace");
        let namespace = match written {
            _ if kind.is_cluster_scoped() => String::new(),
            "" => self.options.default_namespace.clone(),
            written => written.to_owned(),
        };
        let place = if kind == K::Namespace { &name } else { &namespace };
        if LEFT_OUT.contains(&place.as_str()) {
            return true;
        }
        if kind == K::ConfigMap && name == "istio" && namespace == self.options.root_namespace {
            self.read_mesh_config(&value);
        }
        let written = if kind.is_cluster_scoped() { "" } else { written };
        let shown = Name { namespace: written.to_owned(), name: name.clone() };
        let resource = format!("{} {shown}", kind.as_str());
        let name = Name { namespace, name };
        let object = Object { kind, name, resource, value };
        let all = self.objects.entry(kind).or_default();
        match self.places.get(&(kind, object.name.clone())).and_then(|i| all.get_mut(*i)) {
            Some(old) => *old = object,
            None => {
                self.places.insert((kind, object.name.clone()), all.len());
                all.push(object);
            }
        }
        true
    }

    /// The mesh configuration that a cluster holds; one that was given counts more.
    fn read_mesh_config(&mut self, config_map: &Value) {
        let read = |key: &str| {
            let text = config_map.pointer("/data").and_then(|d| d.get(key)).and_then(Value::as_str)?;
            crate::yaml::values(text).ok()?.into_iter().next()
        };
        if self.options.mesh_config.is_null() {
            self.options.mesh_config = read("mesh").unwrap_or_default();
        }
        if self.options.mesh_networks.is_null() {
            self.options.mesh_networks = read("meshNetworks").unwrap_or_default();
        }
    }

    /// All objects of a kind, in the order they were added.
    pub(super) fn all(&self, kind: Kind) -> &[Object] {
        self.objects.get(&kind).map_or(&[], Vec::as_slice)
    }

    /// The namespace whose policies apply to the whole mesh.
    pub(super) fn root_namespace(&self) -> &str {
        match text(&self.options.mesh_config, "/rootNamespace") {
            "" => &self.options.root_namespace,
            configured => configured,
        }
    }

    /// One object.
    pub(super) fn find(&self, kind: Kind, name: &Name) -> Option<&Object> {
        let place = *self.places.get(&(kind, name.clone()))?;
        self.all(kind).get(place)
    }

    pub(super) fn namespace(&self, name: &str) -> Option<&Object> {
        self.find(K::Namespace, &Name { namespace: String::new(), name: name.to_owned() })
    }

    /// Every object, by kind.
    pub(super) fn every(&self) -> impl Iterator<Item = &Object> {
        self.objects.values().flatten()
    }
}

/// The gateway that Istio installs, as far as rules refer to it.
fn ingress_gateway(namespace: &str) -> [Value; 2] {
    let port = |name: &str, port: u16| serde_json::json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP"});
    let name = "istio-ingressgateway";
    [
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("{name}-assumed"), "namespace": namespace, "labels": {"istio": "ingressgateway"}},
            "spec": {"containers": [{"name": "istio-proxy"}]},
        }),
        serde_json::json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "selector": {"istio": "ingressgateway"},
                "ports": [port("http2", 80), port("https", 443), port("tcp", 31400), port("tls", 15443)],
            },
        }),
    ]
}
