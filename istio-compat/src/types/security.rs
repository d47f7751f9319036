//! PeerAuthentication, RequestAuthentication, AuthorizationPolicy.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{Duration, PolicyTargetReference, WorkloadSelector};

/// Whether workloads accept plaintext.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "has(self.portLevelMtls) ? (((has(self.selector) && has(self.selector.matchLabels)) ? self.selector.matchLabels : {}).size() > 0) : true", "message": "portLevelMtls requires selector" },
]))]
pub struct PeerAuthenticationSpec {
    /// Workloads; all of the namespace when absent.
    pub selector: Option<WorkloadSelector>,
    /// Whether plaintext is accepted.
    pub mtls: Option<MutualTls>,
    /// The same for single ports.
    #[schemars(with = "super::common::PortLevel<MutualTls>")]
    pub port_level_mtls: BTreeMap<String, MutualTls>,
}

/// Whether plaintext is accepted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MutualTls {
    /// The mode.
    pub mode: Option<MtlsMode>,
}

/// Whether plaintext is accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MtlsMode {
    /// As the namespace or the mesh says.
    #[default]
    Unset,
    /// TLS is not spoken.
    Disable,
    /// Yes.
    Permissive,
    /// No.
    Strict,
}

/// Tokens that requests may carry.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1", "message": "only one of targetRefs or selector can be set" },
]))]
pub struct RequestAuthenticationSpec {
    /// Workloads; all of the namespace when absent.
    pub selector: Option<WorkloadSelector>,
    /// An object instead of workloads.
    pub target_ref: Option<PolicyTargetReference>,
    /// Objects instead of workloads.
    #[schemars(length(max = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Rules for tokens.
    #[schemars(length(max = 4096))]
    pub jwt_rules: Vec<JwtRule>,
}

/// A rule for tokens of an issuer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JwtRule {
    /// Issuer.
    #[schemars(length(min = 1))]
    pub issuer: Option<String>,
    /// Audiences.
    #[schemars(inner(length(min = 1)))]
    pub audiences: Vec<String>,
    /// Where the keys are.
    #[schemars(length(min = 1, max = 2048), extend("x-alias" = "jwks_uri", "x-kubernetes-validations" = [
        { "rule": "url(self).getScheme() in ['http', 'https']", "message": "url must have scheme http:// or https://" },
    ]))]
    pub jwks_uri: Option<String>,
    /// The keys.
    pub jwks: String,
    /// Headers with tokens.
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters with tokens.
    #[schemars(inner(length(min = 1)))]
    pub from_params: Vec<String>,
    /// Cookies with tokens.
    #[schemars(inner(length(min = 1)))]
    pub from_cookies: Vec<String>,
    /// Header for the payload.
    pub output_payload_to_header: String,
    /// Whether the token is passed on.
    pub forward_original_token: bool,
    /// Headers for claims.
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// Limit for getting the keys.
    pub timeout: Option<Duration>,
    /// Claims that are lists in one string.
    #[schemars(length(max = 64), inner(length(min = 1)))]
    pub space_delimited_claims: Vec<String>,
}

/// A header with a token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["name"]))]
pub struct JwtHeader {
    /// Name.
    #[schemars(length(min = 1))]
    pub name: String,
    /// What comes before the token.
    pub prefix: String,
}

/// A header for a claim.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["header", "claim"]))]
pub struct ClaimToHeader {
    /// The header.
    #[schemars(length(min = 1), regex(pattern = r"^[-_A-Za-z0-9]+$"))]
    pub header: String,
    /// The claim.
    #[schemars(length(min = 1))]
    pub claim: String,
}

/// Who may call what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1", "message": "only one of targetRefs or selector can be set" },
]))]
pub struct AuthorizationPolicySpec {
    /// Workloads; all of the namespace when absent.
    pub selector: Option<WorkloadSelector>,
    /// An object instead of workloads.
    pub target_ref: Option<PolicyTargetReference>,
    /// Objects instead of workloads.
    #[schemars(length(max = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Rules; any of them is enough.
    #[schemars(length(max = 512))]
    pub rules: Option<Vec<AuthorizationRule>>,
    /// What happens when a rule matches.
    pub action: Option<AuthorizationAction>,
    /// Who decides, for CUSTOM.
    pub provider: Option<ExtensionProvider>,
}

/// What happens when a rule matches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AuthorizationAction {
    /// Allowed.
    #[default]
    Allow,
    /// Refused.
    Deny,
    /// Logged.
    Audit,
    /// A provider decides.
    Custom,
}

/// Who decides.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProvider {
    /// Its name.
    pub name: String,
}

/// Conditions that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationRule {
    /// Who calls; any is enough.
    #[schemars(length(max = 512))]
    pub from: Option<Vec<From>>,
    /// What is called; any is enough.
    pub to: Option<Vec<To>>,
    /// Further conditions; all must hold.
    pub when: Vec<Condition>,
}

/// Who calls.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct From {
    /// Conditions.
    #[schemars(extend("x-kubernetes-validations" = [
        { "rule": "(has(self.serviceAccounts) || has(self.notServiceAccounts)) ? !has(self.principals) && !has(self.notPrincipals) && !has(self.namespaces) && !has(self.notNamespaces) : true", "message": "Cannot set serviceAccounts with namespaces or principals" },
    ]))]
    pub source: Option<Source>,
}

/// Conditions on the caller; all must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// Identities.
    pub principals: Option<Vec<String>>,
    /// Identities that do not match.
    pub not_principals: Option<Vec<String>>,
    /// Token identities.
    pub request_principals: Option<Vec<String>>,
    /// Token identities that do not match.
    pub not_request_principals: Option<Vec<String>>,
    /// Namespaces.
    pub namespaces: Option<Vec<String>>,
    /// Namespaces that do not match.
    pub not_namespaces: Option<Vec<String>>,
    /// Service accounts.
    #[schemars(length(max = 16), inner(length(max = 320)))]
    pub service_accounts: Option<Vec<String>>,
    /// Service accounts that do not match.
    #[schemars(length(max = 16), inner(length(max = 320)))]
    pub not_service_accounts: Option<Vec<String>>,
    /// Trust domains.
    pub trust_domains: Option<Vec<String>>,
    /// Trust domains that do not match.
    pub not_trust_domains: Option<Vec<String>>,
    /// Addresses.
    pub ip_blocks: Option<Vec<String>>,
    /// Addresses that do not match.
    pub not_ip_blocks: Option<Vec<String>>,
    /// Addresses of the first client.
    pub remote_ip_blocks: Option<Vec<String>>,
    /// Addresses of the first client that do not match.
    pub not_remote_ip_blocks: Option<Vec<String>>,
}

/// What is called.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct To {
    /// Conditions.
    pub operation: Option<Operation>,
}

/// Conditions on the request; all must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    /// Hosts.
    pub hosts: Option<Vec<String>>,
    /// Hosts that do not match.
    pub not_hosts: Option<Vec<String>>,
    /// Ports.
    pub ports: Option<Vec<String>>,
    /// Ports that do not match.
    pub not_ports: Option<Vec<String>>,
    /// Methods.
    pub methods: Option<Vec<String>>,
    /// Methods that do not match.
    pub not_methods: Option<Vec<String>>,
    /// Paths.
    pub paths: Option<Vec<String>>,
    /// Paths that do not match.
    pub not_paths: Option<Vec<String>>,
}

/// A further condition.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["key"]))]
pub struct Condition {
    /// What is looked at.
    pub key: String,
    /// Values.
    pub values: Option<Vec<String>>,
    /// Values that do not match.
    pub not_values: Option<Vec<String>>,
}
