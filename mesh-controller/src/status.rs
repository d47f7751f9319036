//! What the controller makes of each rule, where its author looks: conditions in the object's status, and counts of
//! fields that have no effect. The engine hands over objects and findings and goes on; everything slow happens here.

mod conditions;
mod desk;
mod lease;
mod metrics;
mod writer;

pub(crate) use desk::Desk;
pub(crate) use lease::{STEP, Seat};
pub(crate) use metrics::StatusMetrics;
pub(crate) use writer::{Writing, now, start};
