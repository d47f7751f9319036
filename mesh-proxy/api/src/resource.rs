//! Resource types, their URLs, and decoding with limits.

use prost::Message;

use crate::model;

/// Largest encoded resource that a node accepts: a service with a few thousand endpoints fits.
pub const MAX_RESOURCE_BYTES: usize = 4 << 20;

/// The kinds of resource, in the order in which a node applies them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// Mesh-wide settings; one resource named `mesh`.
    MeshConfig,
    /// Node registry entries.
    Node,
    /// The workloads of a node.
    NodeWorkloads,
    /// Services with their routes and policies.
    Service,
    /// Endpoints of a service.
    Endpoints,
    /// Keys and certificates.
    Secret,
    /// What a gateway does with requests for a domain.
    GatewayHost,
    /// Listeners of gateway workloads.
    Gateway,
    /// What workloads may call.
    Sidecar,
    /// What is measured, logged and traced.
    Telemetry,
}

impl ResourceType {
    /// All types, in order of application: a listener opens when its routes and keys are there.
    pub const ALL: [Self; 10] = [
        Self::MeshConfig,
        Self::Node,
        Self::NodeWorkloads,
        Self::Service,
        Self::Endpoints,
        Self::Secret,
        Self::GatewayHost,
        Self::Gateway,
        Self::Sidecar,
        Self::Telemetry,
    ];
    /// How many types there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Position in [`Self::ALL`], for tables by type.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The type URL used in discovery messages.
    pub const fn url(self) -> &'static str {
        match self {
            Self::MeshConfig => "type.googleapis.com/selvage.mesh.v1.MeshConfig",
            Self::Node => "type.googleapis.com/selvage.mesh.v1.Node",
            Self::NodeWorkloads => "type.googleapis.com/selvage.mesh.v1.NodeWorkloads",
            Self::Service => "type.googleapis.com/selvage.mesh.v1.Service",
            Self::Endpoints => "type.googleapis.com/selvage.mesh.v1.Endpoints",
            Self::Secret => "type.googleapis.com/selvage.mesh.v1.Secret",
            Self::GatewayHost => "type.googleapis.com/selvage.mesh.v1.GatewayHost",
            Self::Gateway => "type.googleapis.com/selvage.mesh.v1.Gateway",
            Self::Sidecar => "type.googleapis.com/selvage.mesh.v1.Sidecar",
            Self::Telemetry => "type.googleapis.com/selvage.mesh.v1.Telemetry",
        }
    }

    /// The type that a URL names.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.url() == url)
    }

    /// Short name for logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MeshConfig => "mesh_config",
            Self::Node => "node",
            Self::NodeWorkloads => "node_workloads",
            Self::Service => "service",
            Self::Endpoints => "endpoints",
            Self::Secret => "secret",
            Self::GatewayHost => "gateway_host",
            Self::Gateway => "gateway",
            Self::Sidecar => "sidecar",
            Self::Telemetry => "telemetry",
        }
    }
}

/// One decoded resource.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "short-lived: decoded, then moved into the tables")]
pub enum Resource {
    /// Mesh-wide settings.
    MeshConfig(model::MeshConfig),
    /// A node registry entry.
    Node(model::Node),
    /// The workloads of a node.
    NodeWorkloads(model::NodeWorkloads),
    /// A service with its routes and policies.
    Service(model::Service),
    /// Endpoints of a service.
    Endpoints(model::Endpoints),
    /// Keys and certificates.
    Secret(model::Secret),
    /// What a gateway does with requests for a domain; carries its name beside it.
    GatewayHost(NamedGatewayHost),
    /// Listeners of gateway workloads.
    Gateway(model::Gateway),
    /// What workloads may call.
    Sidecar(model::Sidecar),
    /// What is measured, logged and traced.
    Telemetry(model::Telemetry),
}

/// A [`model::GatewayHost`] with its resource name, which is made of three of its fields.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedGatewayHost {
    name: String,
    host: model::GatewayHost,
}

impl NamedGatewayHost {
    /// Names it.
    pub fn new(host: model::GatewayHost) -> Self {
        Self { name: gateway_host_name(&host.gateway, &host.server, &host.domain), host }
    }

    /// Its content.
    pub fn into_inner(self) -> model::GatewayHost {
        self.host
    }
}

impl std::ops::Deref for NamedGatewayHost {
    type Target = model::GatewayHost;
    fn deref(&self) -> &model::GatewayHost {
        &self.host
    }
}

/// The resource name of a [`model::GatewayHost`].
pub fn gateway_host_name(gateway: &str, server: &str, domain: &str) -> String {
    format!("{gateway}|{server}|{domain}")
}

/// Why bytes are not a resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The type URL is not one of ours.
    #[error("unknown resource type {0:?}")]
    UnknownType(String),
    /// Larger than [`MAX_RESOURCE_BYTES`].
    #[error("resource {name} of {size} bytes is larger than the limit of {MAX_RESOURCE_BYTES}")]
    TooLarge {
        /// Resource name.
        name: String,
        /// Encoded size in bytes.
        size: usize,
    },
    /// Not a protobuf message of that type.
    #[error("decode {kind} {name}: {reason}")]
    Malformed {
        /// Short type name.
        kind: &'static str,
        /// Resource name.
        name: String,
        /// What the decoder said.
        reason: String,
    },
}

impl Resource {
    /// The type of this resource.
    pub const fn kind(&self) -> ResourceType {
        match self {
            Self::MeshConfig(_) => ResourceType::MeshConfig,
            Self::Node(_) => ResourceType::Node,
            Self::NodeWorkloads(_) => ResourceType::NodeWorkloads,
            Self::Service(_) => ResourceType::Service,
            Self::Endpoints(_) => ResourceType::Endpoints,
            Self::Secret(_) => ResourceType::Secret,
            Self::GatewayHost(_) => ResourceType::GatewayHost,
            Self::Gateway(_) => ResourceType::Gateway,
            Self::Sidecar(_) => ResourceType::Sidecar,
            Self::Telemetry(_) => ResourceType::Telemetry,
        }
    }

    /// The resource name that this content belongs under.
    pub fn name(&self) -> &str {
        match self {
            Self::MeshConfig(_) => "mesh",
            Self::Node(n) => &n.name,
            Self::NodeWorkloads(n) => &n.node,
            Self::Service(s) => &s.host,
            Self::Endpoints(e) => &e.host,
            Self::Secret(s) => &s.name,
            Self::GatewayHost(h) => &h.name,
            Self::Gateway(g) => &g.name,
            Self::Sidecar(s) => &s.name,
            Self::Telemetry(t) => &t.name,
        }
    }

    /// Encodes the content (without the `Any` wrapper).
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::MeshConfig(m) => m.encode_to_vec(),
            Self::Node(m) => m.encode_to_vec(),
            Self::NodeWorkloads(m) => m.encode_to_vec(),
            Self::Service(m) => m.encode_to_vec(),
            Self::Endpoints(m) => m.encode_to_vec(),
            Self::Secret(m) => m.encode_to_vec(),
            Self::GatewayHost(m) => m.host.encode_to_vec(),
            Self::Gateway(m) => m.encode_to_vec(),
            Self::Sidecar(m) => m.encode_to_vec(),
            Self::Telemetry(m) => m.encode_to_vec(),
        }
    }

    /// Decodes the content of a resource of a known type. `name` is for the error text only.
    pub fn decode(kind: ResourceType, name: &str, bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_RESOURCE_BYTES {
            return Err(DecodeError::TooLarge { name: name.to_owned(), size: bytes.len() });
        }
        let malformed = |e: prost::DecodeError| DecodeError::Malformed {
            kind: kind.as_str(),
            name: name.to_owned(),
            reason: e.to_string(),
        };
        Ok(match kind {
            ResourceType::MeshConfig => Self::MeshConfig(Message::decode(bytes).map_err(malformed)?),
            ResourceType::Node => Self::Node(Message::decode(bytes).map_err(malformed)?),
            ResourceType::NodeWorkloads => Self::NodeWorkloads(Message::decode(bytes).map_err(malformed)?),
            ResourceType::Service => Self::Service(Message::decode(bytes).map_err(malformed)?),
            ResourceType::Endpoints => Self::Endpoints(Message::decode(bytes).map_err(malformed)?),
            ResourceType::Secret => Self::Secret(Message::decode(bytes).map_err(malformed)?),
            ResourceType::GatewayHost => {
                Self::GatewayHost(NamedGatewayHost::new(Message::decode(bytes).map_err(malformed)?))
            }
            ResourceType::Gateway => Self::Gateway(Message::decode(bytes).map_err(malformed)?),
            ResourceType::Sidecar => Self::Sidecar(Message::decode(bytes).map_err(malformed)?),
            ResourceType::Telemetry => Self::Telemetry(Message::decode(bytes).map_err(malformed)?),
        })
    }
}

/// A version for content: FNV-1a over the encoded bytes, as 16 hex digits. Equal content has an equal version, so
/// a controller that restarts does not resend what nodes already have.
pub fn version_of(bytes: &[u8]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for b in bytes {
        hash ^= u64::from(*b);
        hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("{hash:016x}")
}
