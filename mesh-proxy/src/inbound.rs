//! Streams that other nodes open to pods of this node: checked against the tables, connected, copied, counted.
//!
//! - [`check`]: may this peer reach that endpoint in the name of that source? Pure.
//! - [`serve`]: the path of one stream, in request order.
//! - `limits`: what Sidecars say about connections to their workloads.
//! - [`counts`]: refusals and gauges, and who is on both sides of a stream.
//!
//! The Istio series with `reporter="destination"` are in [`crate::telemetry`], as is what reads the HTTP that goes by.

pub mod check;
pub(crate) mod counts;
mod limits;
pub mod serve;

pub use check::{Admission, Denied};
pub use serve::{Inbound, InboundConfig};

#[cfg(test)]
mod tests;
