//! Pure decisions of the data plane: what a name, an address or a request leads to.
//!
//! - [`Tables`]: an immutable snapshot of the mesh, rebuilt only where a change touches it.
//! - [`route`]: compiled rules; [`Tables::route_http`], [`Tables::route_tcp`], [`Tables::route_tls`] decide.
//! - [`actions`], [`retry`]: what a chosen rule does to a request.
//! - [`cluster`], [`policy`]: the endpoints behind a destination and how to treat them.
//! - [`balance`], [`outlier`], [`budget`]: run-time state of a cluster. Time and chance are arguments.
//! - [`command`]: texts with Envoy's command operators, for the log, spans and headers.
//! - [`dns`]: answers for names of the mesh.
//!
//! Nothing here opens a socket, reads a clock or draws a random number.
#![deny(missing_docs)]

pub mod actions;
pub mod balance;
pub mod budget;
pub mod client;
pub mod cluster;
pub mod command;
mod decide;
pub mod dns;
pub mod endpoint;
pub mod expression;
mod extras;
#[cfg(test)]
mod fixtures;
pub mod gateway;
mod hash;
mod host;
pub mod outlier;
pub mod path;
pub mod policy;
pub mod retry;
pub mod route;
pub mod scope;
pub mod service;
mod shards;
pub mod sticky;
pub mod strings;
pub mod tables;

pub use client::{Client, Dice, DiceKind, RequestView};
pub use cluster::{Cluster, ClusterEndpoint, ClusterKey, Source};
pub use decide::{HttpDecision, HttpOutcome, L4Decision, L4Outcome, Missing};
pub use endpoint::{EndpointEntry, EndpointSet, Locality, NamedEndpoint, NodeEntry, Place, WorkloadEntry};
pub use policy::EffectivePolicy;
pub use route::HttpRule;
pub use service::{PortEntry, Protocol, Resolution, ServiceEntry, ServiceKind};
pub use tables::{Applied, Change, EndpointMatch, MeshSettings, Rejected, Tables, VipMatch};
