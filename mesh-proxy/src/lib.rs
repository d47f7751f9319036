//! The edge mesh data plane: DNS, capture, L4 and L7 routing, tunnel.
//!
//! - [`app`]: builds everything below and runs it until the drain has ended.
//! - [`config`], [`cli`]: what an operator sets.
//! - [`identity`]: keys, joining, the node certificate.
//! - [`discovery`]: configuration from the controller; [`store`]: the copy of it on disk.
//! - [`shared`]: the tables that everything reads.
//! - [`outbound`]: from an application's connection to an endpoint; [`telemetry`]: what is said about it.
//! - [`admin`]: pages on loopback.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod controller;
pub mod discovery;
pub mod identity;
pub mod outbound;
pub mod shared;
pub mod store;
pub mod telemetry;

pub use config::Config;
pub use shared::Shared;
