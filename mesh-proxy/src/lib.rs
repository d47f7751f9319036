//! The edge mesh data plane: DNS, capture, L4 and L7 routing, tunnel.
//!
//! - [`app`]: builds everything below and runs it until the drain has ended.
//! - [`config`], [`cli`]: what an operator sets.
//! - [`identity`]: keys, joining, the node certificate.
//! - [`discovery`]: configuration from the controller; [`store`]: the copy of it on disk.
//! - [`shared`]: the tables that everything reads.
//! - [`outbound`]: from an application's connection to an endpoint; [`telemetry`]: what is said about it.
//! - [`udp`]: datagrams to services.
//! - [`admin`]: pages on loopback.

pub mod admin;
pub mod app;
pub mod capture;
pub mod cli;
pub mod config;
pub mod controller;
pub mod discovery;
pub mod dns;
pub mod gateway;
pub mod identity;
pub mod inbound;
pub mod outbound;
pub mod shared;
pub mod store;
pub mod telemetry;
pub mod tunnel_glue;
pub mod udp;

pub use config::Config;
pub use shared::Shared;

/// An error with all that caused it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        // Many errors print their cause themselves.
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = cause.source();
    }
    text
}
