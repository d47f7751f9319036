//! The control plane: watch, compile, distribute.
//!
//! - [`source`]: objects from Kubernetes or from a folder, as operations.
//! - `engine`: the one writer; keeps the index, publishes what comes out of it.
//! - `distribute`: delta discovery to proxies over mutual TLS; Join and Report.
//! - `registry`: which nodes have joined, and where they can be reached. `members`: who of them belongs to the cluster.
//! - [`state`]: where CA, join tokens and registry are kept. `enrol`: joining as a pod.
//! - `webhook`: admission. `status`: conditions on objects, counts of what has no effect.
//! - [`preflight`]: whether a cluster can run the mesh.
//! - [`app`]: starts the parts. [`config`]: what can be set.

mod admin;
pub mod app;
pub mod config;
mod distribute;
mod engine;
mod enrol;
mod members;
mod metrics;
pub mod peer_id;
pub mod preflight;
mod registry;
pub mod source;
pub mod state;
mod status;
mod webhook;

/// An error with its causes, on one line. Some libraries repeat the cause in their own text; it is said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
