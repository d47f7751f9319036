//! Kinds of Gateway API's experiments.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Anything, BackendValidation, ObjectReference, PolicyTarget};

/// A backend outside the cluster (experimental).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct XBackendSpec {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) external_hostname: Option<ExternalHostname>,
    pub(crate) port: XBackendPort,
    pub(crate) protocol: Option<String>,
    pub(crate) tls: Option<XBackendTls>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct ExternalHostname {
    pub(crate) hostname: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct XBackendPort {
    pub(crate) port: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct XBackendTls {
    pub(crate) mode: String,
    pub(crate) validation: BackendValidation,
    pub(crate) client_certificate_ref: Option<ObjectReference>,
}

/// Retries towards backends (experimental).
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct XBackendTrafficPolicySpec {
    pub(crate) target_refs: Vec<PolicyTarget>,
    pub(crate) retry_constraint: Option<RetryConstraint>,
    #[schemars(with = "Option<Anything>")]
    pub(crate) session_persistence: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RetryConstraint {
    pub(crate) budget: RetryBudget,
    pub(crate) min_retry_rate: Option<RetryRate>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct RetryBudget {
    pub(crate) percent: Option<i32>,
    pub(crate) interval: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct RetryRate {
    pub(crate) count: Option<u32>,
    pub(crate) interval: Option<String>,
}
