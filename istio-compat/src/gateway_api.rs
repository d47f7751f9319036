//! Gateway API: its objects to the Istio objects that mean the same, and to their status. The rest of the mesh compiles
//! those as if somebody had written them; two annotations tell where Gateway API differs from Istio (a path prefix ends
//! at a slash, a backend that does not exist is answered with 500).
//!
//! - [`objects`]: which objects are read. [`facts`]: what they refer to.
//! - `listener`, `conflicts`, `addresses`, `gateways`: listeners, what serves them, what attaches to them.
//! - `attach`, `backends`, `http`, `routes`: routes. `policies`: how backends are called.
//! - `cache`: what was compiled before, so that a change costs as much as it concerns.
//! - `grants`, `certificates`, `selector`, `hostnames`, `conditions`: who may refer to what, and what is said of it.
//!
//! Not here: waypoints and other parts of ambient mode, InferencePool.

mod addresses;
mod attach;
mod backends;
mod cache;
mod certificates;
mod conditions;
mod conflicts;
pub mod facts;
mod gateways;
mod grants;
mod hostnames;
mod http;
mod listener;
pub mod objects;
mod policies;
mod routes;
mod selector;
mod support;
mod types;

use serde_json::Value;

pub use cache::{Cache, Delta, Touched};
pub use facts::{Facts, Snapshot};
pub use objects::{GatewayKind, GatewayObject, Objects, Read, is_known, read};

use crate::types::{DestinationRule, Meta, VirtualService};

/// The annotation of VirtualServices that come from routes; its value is `gateway`.
pub const ROUTE_SEMANTICS: &str = "internal.istio.io/route-semantics";

/// Names that a mesh chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Domain of Kubernetes services.
    pub cluster_domain: String,
    /// Controller of the classes that are ours, and of what is said in status.
    pub controller: String,
    /// Controller in the status of policies, for the mesh itself.
    pub mesh_controller: String,
    /// Controller of Gateways that are of another cluster.
    pub remote_controller: String,
    /// A class that is ours without an object.
    pub class: String,
    /// A class of Gateways of another cluster, without an object.
    pub remote_class: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".to_owned(),
            controller: "istio.io/gateway-controller".to_owned(),
            mesh_controller: "istio.io/mesh-controller".to_owned(),
            remote_controller: "istio.io/unmanaged-gateway".to_owned(),
            class: "istio".to_owned(),
            remote_class: "istio-remote".to_owned(),
        }
    }
}

/// Everything that Gateway API depends on.
#[derive(Clone, Copy)]
pub struct World<'a> {
    /// Its objects.
    pub objects: &'a Objects,
    /// What they refer to.
    pub facts: &'a dyn Facts,
    /// Names.
    pub settings: &'a Settings,
}

/// Which object a status is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: GatewayKind,
    /// Its namespace; empty for a GatewayClass.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The whole of `status` for objects that are ours to speak about.
pub type Statuses = Vec<(ObjectRef, Value)>;

/// The Istio Gateway that one listener becomes.
#[derive(Debug, Clone, PartialEq)]
pub struct DerivedGateway {
    /// Name, namespace, annotations.
    pub meta: Meta,
    /// Spec of an Istio Gateway, without a selector.
    pub spec: Value,
    /// The Gateway of Gateway API that it belongs to: namespace and name.
    pub gateway: (String, String),
    /// Hosts of the services whose workloads serve it.
    pub services: Vec<String>,
    /// Name of the secret whose certificate it shows to backends; empty = none.
    pub client_certificate: String,
}

/// What Gateway API objects become.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Derived {
    /// One for each listener.
    pub gateways: Vec<DerivedGateway>,
    /// Routes.
    pub virtual_services: Vec<VirtualService>,
    /// Policies.
    pub destination_rules: Vec<DestinationRule>,
}

/// Objects and statuses of a world. `now` is the time (RFC 3339) of conditions that change.
pub fn compile(world: &World<'_>, now: &str) -> (Derived, Statuses) {
    Cache::derived(world, now)
}

/// The status of every object that is ours to speak about.
pub fn statuses(world: &World<'_>, now: &str) -> Statuses {
    compile(world, now).1
}
