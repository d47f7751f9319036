//! Kubernetes and Istio objects in, compiled resources out. Pure: no I/O, no clock, no randomness.
//!
//! [`Index::apply`] and [`Index::delete`] note which hosts and nodes a change touches; [`Index::compile`] compiles
//! those and nothing else, and returns what differs from before. The work grows with the change, not with the mesh.
//!
//! - [`object`]: which objects are read, and their keys.
//! - [`finding`]: what is wrong with objects; a bad one never replaces the last good one.
//! - [`protocol`]: which protocol a service port speaks.
#![deny(missing_docs)]

pub mod finding;
mod index;
mod kube;
pub mod object;
pub mod protocol;

pub use finding::{Finding, Level};
pub use index::{Applied, Change, CompileStats, Content, Index, Options, Registration};
pub use object::{Kind, ObjectKey};
