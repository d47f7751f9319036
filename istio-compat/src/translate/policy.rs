//! DestinationRule to destination policies.

use mesh_api::model;

use super::Context;
use crate::types::DestinationRule;

pub(super) fn destination_rule(
    _object: &DestinationRule,
    _ctx: &Context,
) -> Option<(String, model::DestinationPolicy)> {
    None
}

pub(super) fn policies(
    _host: &str,
    _service_namespace: &str,
    _candidates: &[&DestinationRule],
    _ctx: &Context,
) -> Vec<model::DestinationPolicy> {
    Vec::new()
}
