//! How a node proves itself where it has no join token: as the pod that it is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Files that are mounted into the pod. Both are read again at each use: the token rotates, the CA may be replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct IdentityConfig {
    /// Projected service-account token with the controller's audience; none = a join token is needed.
    #[serde(alias = "service_account_token_file")]
    pub service_account_token_file: Option<PathBuf>,
    /// CA of the mesh (PEM): whom this node trusts to be the controller when it joins.
    #[serde(alias = "ca_file")]
    pub ca_file: Option<PathBuf>,
}

impl IdentityConfig {
    /// What is missing.
    pub(crate) fn validate(&self) -> Option<&'static str> {
        (self.service_account_token_file.is_some() && self.ca_file.is_none()).then_some(
            "is needed beside serviceAccountTokenFile: a node does not send its token to a stranger",
        )
    }
}
