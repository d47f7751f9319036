//! Istio resources as users write them, translated to the mesh model. Pure: no I/O, no clock, no randomness.
//!
//! - [`types`]: VirtualService and DestinationRule, every field of Istio's schema.
//! - [`parse`]: an applied object to a typed resource, with its unknown and unsupported fields named.
//! - [`validate`]: what admission refuses, with field and reason.
//! - [`translate`]: typed resources to `mesh_api::model`.
//! - [`support`]: the one table of fields that says what this mesh honours; also prints the documentation.
//! - [`gateway_api`]: Gateway API objects to Istio objects and their status.
//! - [`analyze`]: what is wrong with objects when they are looked at together.
//! - [`mesh_config`]: settings of the whole mesh.
//! - [`crd`]: CustomResourceDefinitions from the types.
//! - [`names`], [`duration`], [`yaml`]: host names, Go-style durations, files as Kubernetes reads them.
#![deny(missing_docs)]

pub mod analyze;
pub mod crd;
pub mod duration;
pub mod gateway_api;
pub mod mesh_config;
pub mod names;
pub mod parse;
pub mod schema;
pub mod support;
pub mod translate;
pub mod types;
pub mod validate;
pub mod yaml;

pub use parse::{Finding, ParseError, Parsed, parse};
pub use types::{DestinationRule, Meta, Resource, VirtualService};
