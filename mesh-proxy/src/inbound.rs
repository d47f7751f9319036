//! Streams that other nodes open to pods of this node: checked against the tables, connected, copied, counted.
//!
//! - [`check`]: may this peer reach that endpoint in the name of that source? Pure.
//! - [`serve`]: the path of one stream, in request order.
//! - `rules`: what Telemetry resources say about it.
//! - [`counts`]: refusals, gauges and the Istio series with `reporter="destination"`.

pub mod check;
pub(crate) mod counts;
mod rules;
pub mod serve;

pub use check::{Admission, Denied};
pub use serve::{Inbound, InboundConfig};

#[cfg(test)]
mod tests;
