//! Which Gateway API objects are read, and the set of those that are known.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::types::{
    BackendTlsPolicySpec, GatewayClassSpec, GatewaySpec, GrpcRule, HttpRule, L4Rule, ListenerSetSpec,
    ReferenceGrantSpec, RouteSpec, XBackendSpec, XBackendTrafficPolicySpec,
};
use crate::{
    parse::{Finding, ParseError},
    schema,
    types::Meta,
};

/// The API group of Gateway API.
pub const GROUP: &str = "gateway.networking.k8s.io";
/// The API group of its experiments.
pub const X_GROUP: &str = "gateway.networking.x-k8s.io";

/// A kind of Gateway API object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub enum GatewayKind {
    /// Which controller serves Gateways of a class.
    GatewayClass,
    /// Listeners.
    Gateway,
    /// More listeners for a Gateway.
    ListenerSet,
    /// HTTP rules.
    HTTPRoute,
    /// gRPC rules.
    GRPCRoute,
    /// TLS rules, by SNI.
    TLSRoute,
    /// TCP rules.
    TCPRoute,
    /// UDP rules: read to say that they are not served.
    UDPRoute,
    /// Leave to refer across namespaces.
    ReferenceGrant,
    /// TLS towards backends.
    BackendTLSPolicy,
    /// A backend outside the cluster.
    XBackend,
    /// Retry budgets towards backends.
    XBackendTrafficPolicy,
}

impl GatewayKind {
    /// All kinds, those that others refer to first.
    pub const ALL: [Self; 12] = [
        Self::GatewayClass,
        Self::ReferenceGrant,
        Self::Gateway,
        Self::ListenerSet,
        Self::HTTPRoute,
        Self::GRPCRoute,
        Self::TLSRoute,
        Self::TCPRoute,
        Self::UDPRoute,
        Self::BackendTLSPolicy,
        Self::XBackend,
        Self::XBackendTrafficPolicy,
    ];

    /// As in manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GatewayClass => "GatewayClass",
            Self::Gateway => "Gateway",
            Self::ListenerSet => "ListenerSet",
            Self::HTTPRoute => "HTTPRoute",
            Self::GRPCRoute => "GRPCRoute",
            Self::TLSRoute => "TLSRoute",
            Self::TCPRoute => "TCPRoute",
            Self::UDPRoute => "UDPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::BackendTLSPolicy => "BackendTLSPolicy",
            Self::XBackend => "XBackend",
            Self::XBackendTrafficPolicy => "XBackendTrafficPolicy",
        }
    }

    /// The API group.
    pub const fn group(self) -> &'static str {
        match self {
            Self::XBackend | Self::XBackendTrafficPolicy => X_GROUP,
            _ => GROUP,
        }
    }

    /// API versions that are read, best first.
    pub const fn versions(self) -> &'static [&'static str] {
        match self {
            Self::GatewayClass | Self::Gateway | Self::HTTPRoute => &["v1", "v1beta1"],
            Self::ListenerSet => &["v1"],
            Self::GRPCRoute | Self::TCPRoute | Self::UDPRoute => &["v1", "v1alpha2"],
            Self::TLSRoute => &["v1", "v1alpha3", "v1alpha2"],
            Self::ReferenceGrant => &["v1", "v1beta1", "v1alpha2"],
            Self::BackendTLSPolicy => &["v1", "v1alpha3"],
            Self::XBackend | Self::XBackendTrafficPolicy => &["v1alpha1"],
        }
    }

    /// Whether objects of this kind belong to no namespace.
    pub const fn is_cluster_scoped(self) -> bool {
        matches!(self, Self::GatewayClass)
    }

    /// The schema of the spec, as far as this mesh reads it.
    pub fn schema(self) -> &'static Value {
        macro_rules! of {
            ($spec:ty) => {{
                static SCHEMA: LazyLock<Value> = LazyLock::new(schema::structural::<$spec>);
                &SCHEMA
            }};
        }
        match self {
            Self::GatewayClass => of!(GatewayClassSpec),
            Self::Gateway => of!(GatewaySpec),
            Self::ListenerSet => of!(ListenerSetSpec),
            Self::HTTPRoute => of!(RouteSpec<HttpRule>),
            Self::GRPCRoute => of!(RouteSpec<GrpcRule>),
            Self::TLSRoute | Self::TCPRoute | Self::UDPRoute => of!(RouteSpec<L4Rule>),
            Self::ReferenceGrant => of!(ReferenceGrantSpec),
            Self::BackendTLSPolicy => of!(BackendTlsPolicySpec),
            Self::XBackend => of!(XBackendSpec),
            Self::XBackendTrafficPolicy => of!(XBackendTrafficPolicySpec),
        }
    }

    /// The kind of a manifest, if it is read at all.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let (group, version) = api_version.split_once('/')?;
        Self::ALL
            .into_iter()
            .find(|k| k.as_str() == kind && k.group() == group && k.versions().contains(&version))
    }
}

/// Metadata, spec, and the status that the object came with.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Object<S> {
    pub(crate) meta: Meta,
    /// Empty in files.
    pub(crate) uid: String,
    pub(crate) spec: S,
    pub(crate) status: Value,
}

pub(crate) type HttpRoute = Object<RouteSpec<HttpRule>>;
pub(crate) type GrpcRoute = Object<RouteSpec<GrpcRule>>;
pub(crate) type L4Route = Object<RouteSpec<L4Rule>>;

/// An object that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayObject(pub(crate) Typed);

#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one per applied object, moved once into the set")]
pub(crate) enum Typed {
    GatewayClass(Object<GatewayClassSpec>),
    Gateway(Object<GatewaySpec>),
    ListenerSet(Object<ListenerSetSpec>),
    HttpRoute(HttpRoute),
    GrpcRoute(GrpcRoute),
    TlsRoute(L4Route),
    TcpRoute(L4Route),
    UdpRoute(L4Route),
    ReferenceGrant(Object<ReferenceGrantSpec>),
    BackendTlsPolicy(Object<BackendTlsPolicySpec>),
    XBackend(Object<XBackendSpec>),
    XBackendTrafficPolicy(Object<XBackendTrafficPolicySpec>),
}

impl GatewayObject {
    /// Its kind.
    pub const fn kind(&self) -> GatewayKind {
        match &self.0 {
            Typed::GatewayClass(_) => GatewayKind::GatewayClass,
            Typed::Gateway(_) => GatewayKind::Gateway,
            Typed::ListenerSet(_) => GatewayKind::ListenerSet,
            Typed::HttpRoute(_) => GatewayKind::HTTPRoute,
            Typed::GrpcRoute(_) => GatewayKind::GRPCRoute,
            Typed::TlsRoute(_) => GatewayKind::TLSRoute,
            Typed::TcpRoute(_) => GatewayKind::TCPRoute,
            Typed::UdpRoute(_) => GatewayKind::UDPRoute,
            Typed::ReferenceGrant(_) => GatewayKind::ReferenceGrant,
            Typed::BackendTlsPolicy(_) => GatewayKind::BackendTLSPolicy,
            Typed::XBackend(_) => GatewayKind::XBackend,
            Typed::XBackendTrafficPolicy(_) => GatewayKind::XBackendTrafficPolicy,
        }
    }

    /// Its metadata; the namespace of a GatewayClass is empty.
    pub const fn meta(&self) -> &Meta {
        match &self.0 {
            Typed::GatewayClass(o) => &o.meta,
            Typed::Gateway(o) => &o.meta,
            Typed::ListenerSet(o) => &o.meta,
            Typed::HttpRoute(o) => &o.meta,
            Typed::GrpcRoute(o) => &o.meta,
            Typed::TlsRoute(o) | Typed::TcpRoute(o) | Typed::UdpRoute(o) => &o.meta,
            Typed::ReferenceGrant(o) => &o.meta,
            Typed::BackendTlsPolicy(o) => &o.meta,
            Typed::XBackend(o) => &o.meta,
            Typed::XBackendTrafficPolicy(o) => &o.meta,
        }
    }
}

/// Whether [`read`] takes objects of this API version and kind.
pub fn is_known(api_version: &str, kind: &str) -> bool {
    GatewayKind::of(api_version, kind).is_some()
}

/// An object, and the fields that Gateway API does not know or that have no effect here.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The object.
    pub object: GatewayObject,
    /// Fields that are not of its schema, as far as this mesh knows it.
    pub unknown: Vec<Finding>,
    /// Fields that Gateway API defines and this mesh does not honour.
    pub unsupported: Vec<Finding>,
}

/// Reads an object as applied.
pub fn read(object: &Value) -> Result<Read, ParseError> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let Some(known) = GatewayKind::of(&api_version, &kind) else {
        return Err(ParseError::OtherKind { api_version, kind });
    };
    let mut reader = Reader { object, kind: known, unknown: Vec::new() };
    let typed = match known {
        GatewayKind::GatewayClass => Typed::GatewayClass(reader.read()?),
        GatewayKind::Gateway => Typed::Gateway(reader.read()?),
        GatewayKind::ListenerSet => Typed::ListenerSet(reader.read()?),
        GatewayKind::HTTPRoute => Typed::HttpRoute(reader.read()?),
        GatewayKind::GRPCRoute => Typed::GrpcRoute(reader.read()?),
        GatewayKind::TLSRoute => Typed::TlsRoute(reader.read()?),
        GatewayKind::TCPRoute => Typed::TcpRoute(reader.read()?),
        GatewayKind::UDPRoute => Typed::UdpRoute(reader.read()?),
        GatewayKind::ReferenceGrant => Typed::ReferenceGrant(reader.read()?),
        GatewayKind::BackendTLSPolicy => Typed::BackendTlsPolicy(reader.read()?),
        GatewayKind::XBackend => Typed::XBackend(reader.read()?),
        GatewayKind::XBackendTrafficPolicy => Typed::XBackendTrafficPolicy(reader.read()?),
    };
    let unsupported = super::support::unsupported(&typed);
    Ok(Read { object: GatewayObject(typed), unknown: reader.unknown, unsupported })
}

struct Reader<'a> {
    object: &'a Value,
    kind: GatewayKind,
    unknown: Vec<Finding>,
}

impl Reader<'_> {
    fn read<S: DeserializeOwned>(&mut self) -> Result<Object<S>, ParseError> {
        let mut spec = self.object.get("spec").cloned().filter(|s| !s.is_null());
        let spec = spec.get_or_insert_with(|| Value::Object(Map::new()));
        let checked = crate::parse::against_schema(self.object, spec, self.kind.schema())?;
        self.unknown = checked.unknown;
        let mut meta = checked.meta;
        if self.kind.is_cluster_scoped() {
            meta.namespace.clear();
        }
        let spec = S::deserialize(&*spec)
            .map_err(|e| ParseError::Malformed { problems: vec![Finding::new("spec", e.to_string())] })?;
        let status = self.object.get("status").cloned().unwrap_or(Value::Null);
        let uid = self.object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
        Ok(Object { meta, uid: uid.to_owned(), spec, status })
    }
}

/// Namespace and name.
pub(crate) type Key = (String, String);

/// The Gateway API objects that are known.
#[derive(Debug, Default)]
pub struct Objects {
    pub(crate) classes: BTreeMap<Key, Object<GatewayClassSpec>>,
    pub(crate) gateways: BTreeMap<Key, Object<GatewaySpec>>,
    pub(crate) listener_sets: BTreeMap<Key, Object<ListenerSetSpec>>,
    pub(crate) http_routes: BTreeMap<Key, HttpRoute>,
    pub(crate) grpc_routes: BTreeMap<Key, GrpcRoute>,
    pub(crate) tls_routes: BTreeMap<Key, L4Route>,
    pub(crate) tcp_routes: BTreeMap<Key, L4Route>,
    pub(crate) udp_routes: BTreeMap<Key, L4Route>,
    pub(crate) grants: BTreeMap<Key, Object<ReferenceGrantSpec>>,
    pub(crate) tls_policies: BTreeMap<Key, Object<BackendTlsPolicySpec>>,
    pub(crate) backends: BTreeMap<Key, Object<XBackendSpec>>,
    pub(crate) traffic_policies: BTreeMap<Key, Object<XBackendTrafficPolicySpec>>,
}

/// What is different about an object that is known already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Its status, which others may have written.
    Status,
    /// What it asks for; or it is new.
    Spec,
}

fn put<S: PartialEq>(map: &mut BTreeMap<Key, Object<S>>, new: Object<S>) -> Change {
    let key = (new.meta.namespace.clone(), new.meta.name.clone());
    let change = match map.get(&key) {
        Some(old) if old.meta == new.meta && old.spec == new.spec && old.status == new.status => Change::None,
        Some(old) if old.meta == new.meta && old.spec == new.spec => Change::Status,
        _ => Change::Spec,
    };
    map.insert(key, new);
    change
}

impl Objects {
    /// Takes an object in; what is different from before.
    pub fn put(&mut self, object: GatewayObject) -> Change {
        match object.0 {
            Typed::GatewayClass(o) => put(&mut self.classes, o),
            Typed::Gateway(o) => put(&mut self.gateways, o),
            Typed::ListenerSet(o) => put(&mut self.listener_sets, o),
            Typed::HttpRoute(o) => put(&mut self.http_routes, o),
            Typed::GrpcRoute(o) => put(&mut self.grpc_routes, o),
            Typed::TlsRoute(o) => put(&mut self.tls_routes, o),
            Typed::TcpRoute(o) => put(&mut self.tcp_routes, o),
            Typed::UdpRoute(o) => put(&mut self.udp_routes, o),
            Typed::ReferenceGrant(o) => put(&mut self.grants, o),
            Typed::BackendTlsPolicy(o) => put(&mut self.tls_policies, o),
            Typed::XBackend(o) => put(&mut self.backends, o),
            Typed::XBackendTrafficPolicy(o) => put(&mut self.traffic_policies, o),
        }
    }

    /// Forgets an object; whether it was known.
    pub fn remove(&mut self, kind: GatewayKind, namespace: &str, name: &str) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        match kind {
            GatewayKind::GatewayClass => self.classes.remove(&key).is_some(),
            GatewayKind::Gateway => self.gateways.remove(&key).is_some(),
            GatewayKind::ListenerSet => self.listener_sets.remove(&key).is_some(),
            GatewayKind::HTTPRoute => self.http_routes.remove(&key).is_some(),
            GatewayKind::GRPCRoute => self.grpc_routes.remove(&key).is_some(),
            GatewayKind::TLSRoute => self.tls_routes.remove(&key).is_some(),
            GatewayKind::TCPRoute => self.tcp_routes.remove(&key).is_some(),
            GatewayKind::UDPRoute => self.udp_routes.remove(&key).is_some(),
            GatewayKind::ReferenceGrant => self.grants.remove(&key).is_some(),
            GatewayKind::BackendTLSPolicy => self.tls_policies.remove(&key).is_some(),
            GatewayKind::XBackend => self.backends.remove(&key).is_some(),
            GatewayKind::XBackendTrafficPolicy => self.traffic_policies.remove(&key).is_some(),
        }
    }

    /// Namespaces and names of the objects of a kind.
    pub fn names(&self, kind: GatewayKind) -> Vec<(String, String)> {
        fn keys<S>(map: &BTreeMap<Key, S>) -> Vec<Key> {
            map.keys().cloned().collect()
        }
        match kind {
            GatewayKind::GatewayClass => keys(&self.classes),
            GatewayKind::Gateway => keys(&self.gateways),
            GatewayKind::ListenerSet => keys(&self.listener_sets),
            GatewayKind::HTTPRoute => keys(&self.http_routes),
            GatewayKind::GRPCRoute => keys(&self.grpc_routes),
            GatewayKind::TLSRoute => keys(&self.tls_routes),
            GatewayKind::TCPRoute => keys(&self.tcp_routes),
            GatewayKind::UDPRoute => keys(&self.udp_routes),
            GatewayKind::ReferenceGrant => keys(&self.grants),
            GatewayKind::BackendTLSPolicy => keys(&self.tls_policies),
            GatewayKind::XBackend => keys(&self.backends),
            GatewayKind::XBackendTrafficPolicy => keys(&self.traffic_policies),
        }
    }

    /// How many objects of a kind are known.
    pub fn count(&self, kind: GatewayKind) -> usize {
        match kind {
            GatewayKind::GatewayClass => self.classes.len(),
            GatewayKind::Gateway => self.gateways.len(),
            GatewayKind::ListenerSet => self.listener_sets.len(),
            GatewayKind::HTTPRoute => self.http_routes.len(),
            GatewayKind::GRPCRoute => self.grpc_routes.len(),
            GatewayKind::TLSRoute => self.tls_routes.len(),
            GatewayKind::TCPRoute => self.tcp_routes.len(),
            GatewayKind::UDPRoute => self.udp_routes.len(),
            GatewayKind::ReferenceGrant => self.grants.len(),
            GatewayKind::BackendTLSPolicy => self.tls_policies.len(),
            GatewayKind::XBackend => self.backends.len(),
            GatewayKind::XBackendTrafficPolicy => self.traffic_policies.len(),
        }
    }

    /// Whether a listener or policy refers to a Secret or ConfigMap of that name, in whichever namespace.
    pub fn refer_to(&self, name: &str) -> bool {
        let own = self.gateways.values().flat_map(|g| &g.spec.listeners);
        let mut listeners = own.chain(self.listener_sets.values().flat_map(|s| &s.spec.listeners));
        let certificates = listeners
            .any(|l| l.tls.iter().flat_map(|t| &t.certificate_refs).any(|reference| reference.name == name));
        let mut policies = self.tls_policies.values().map(|p| &p.spec.validation);
        certificates
            || policies.any(|v| v.ca_certificate_refs.iter().any(|reference| reference.name == name))
            || self.gateways.values().any(|g| g.spec.tls.is_some() || g.spec.infrastructure.is_some())
            || !self.backends.is_empty()
    }

    /// Whether nothing is known at all.
    pub fn is_empty(&self) -> bool {
        GatewayKind::ALL.into_iter().all(|k| self.count(k) == 0)
    }
}
