//! The compiled mesh configuration, on the wire and in the store. Pure: no I/O, no clock.
//!
//! - [`model`]: what a node needs to know, with every name resolved.
//! - [`xds`]: the delta discovery messages that carry it.
//! - [`resource`]: type URLs, decoding with limits, versions.
//! - [`check`]: which decoded resources a node refuses, and why.
#![deny(missing_docs)]

pub mod check;
mod redact;
pub mod resource;

/// The model: services, routes, policies, endpoints, nodes, and the tunnel's open message.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated; proto/mesh.proto has the documentation"
)]
pub mod model {
    include!(concat!(env!("OUT_DIR"), "/selvage.mesh.v1.rs"));
}

/// Envoy's delta discovery messages.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated; proto/discovery.proto has the documentation"
)]
pub mod xds {
    include!(concat!(env!("OUT_DIR"), "/envoy.service.discovery.v3.rs"));
}

pub use check::{Problem, check};
pub use resource::{DecodeError, NamedGatewayHost, Resource, ResourceType, gateway_host_name};
