//! Joining as a pod: the API server says whose a projected service-account token is and to which pod and node it is bound;
//! the controller issues a certificate for that name and no other.
//!
//! What a token says of itself is read first, unproved: it makes refusals clear, and keeps the API server from being asked
//! about tokens that are of no use here anyway. Only what the API server confirms lets a node in.

mod claims;

use std::{fmt, time::Duration};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams};
use mesh_ca::NodeName;

use crate::registry::Origin;
use claims::Claims;

/// How long the API server may take for a review.
const REVIEW: Duration = Duration::from_secs(10);
/// Far above any token that the API server makes.
const MAX_TOKEN: usize = 16 << 10;
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Why a service-account token does not let a node in. Each case has its own remedy, and its own label in the metrics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("this controller takes no service-account tokens: its source is no cluster")]
    NotHere,
    #[error("not a service-account token: {0}")]
    Malformed(&'static str),
    #[error("the token is for audience {found:?}, not for {wanted:?}")]
    Audience { found: String, wanted: String },
    #[error("service account {found} may not join; those that may: {allowed}")]
    Account { found: String, allowed: String },
    #[error("the token is bound to no pod: a projected token is needed, not a Secret of the account")]
    NotAPod,
    #[error("the token is of a pod on node {found}, it does not join node {wanted}")]
    OtherNode { found: String, wanted: String },
    #[error("the token is of pod {found}, it does not join {wanted}")]
    OtherPod { found: String, wanted: String },
    #[error("pod {0} would take the name of a node of the cluster")]
    NodesName(String),
    #[error("the token expired {0} s ago")]
    Expired(u64),
    #[error("the API server does not know the token (forged, of another cluster, or its pod is gone): {0}")]
    Unauthenticated(String),
    #[error("the API server could not be asked about the token: {0}")]
    Unavailable(String),
}

impl Refused {
    /// The metric's label.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::NotHere => "not_here",
            Self::Malformed(_) => "malformed",
            Self::Audience { .. } => "audience",
            Self::Account { .. } => "account",
            Self::NotAPod => "no_pod",
            Self::OtherNode { .. } => "other_node",
            Self::OtherPod { .. } => "other_pod",
            Self::NodesName(_) => "nodes_name",
            Self::Expired(_) => "expired",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

/// Which accounts may join, and as what.
#[derive(Debug, Clone)]
pub(crate) struct Accounts {
    pub(crate) audience: String,
    /// `namespace/name`; pods of these join as the node that they run on.
    pub(crate) of_nodes: Vec<String>,
    /// `namespace/name`; pods of these join under their own names.
    pub(crate) of_pods: Vec<String>,
}

impl Accounts {
    /// As what a pod of an account joins.
    fn origin(&self, account: &str) -> Result<Origin, Refused> {
        let has = |list: &[String]| list.iter().any(|a| a == account);
        if has(&self.of_nodes) {
            Ok(Origin::NodeServiceAccount)
        } else if has(&self.of_pods) {
            Ok(Origin::PodServiceAccount)
        } else {
            let allowed: Vec<&str> = self.of_nodes.iter().chain(&self.of_pods).map(String::as_str).collect();
            Err(Refused::Account { found: account.to_owned(), allowed: allowed.join(", ") })
        }
    }
}

/// Asks the API server about tokens.
#[derive(Clone)]
pub(crate) struct Reviewer {
    client: Client,
    accounts: Accounts,
}

impl fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reviewer").field("accounts", &self.accounts).finish_non_exhaustive()
    }
}

impl Reviewer {
    pub(crate) fn new(client: Client, accounts: Accounts) -> Self {
        Self { client, accounts }
    }

    /// How `node` has proved itself with `token`.
    pub(crate) async fn admit(&self, token: &str, node: &NodeName, now: u64) -> Result<Origin, Refused> {
        if token.len() > MAX_TOKEN {
            return Err(Refused::Malformed("too long"));
        }
        Claims::of(token)?.check(&self.accounts, node, now)?;
        let user = self.review(token).await?;
        let extra =
            |key: &str| user.extra.as_ref().and_then(|all| all.get(key)).and_then(|v| v.first()).cloned();
        let account = user.username.as_deref().and_then(|u| u.strip_prefix(ACCOUNT_PREFIX));
        let account = account.unwrap_or_default().replacen(':', "/", 1);
        let origin = self.accounts.origin(&account)?;
        let namespace = account.split_once('/').map_or("", |(namespace, _)| namespace);
        let (Some(pod), Some(uid)) = (extra(POD_NAME), extra(POD_UID)) else { return Err(Refused::NotAPod) };
        match origin {
            Origin::PodServiceAccount => {
                let is_node = self.is_node(&pod).await?;
                names_fit(&pod, node, |found, wanted| Refused::OtherPod { found, wanted })?;
                if is_node { Err(Refused::NodesName(pod)) } else { Ok(origin) }
            }
            Origin::NodeServiceAccount | Origin::JoinToken => {
                let runs_on = match extra(NODE_NAME) {
                    Some(name) => name,
                    // API servers before 1.30 do not say.
                    None => self.node_of(namespace, &pod, &uid).await?,
                };
                names_fit(&runs_on, node, |found, wanted| Refused::OtherNode { found, wanted })?;
                Ok(origin)
            }
        }
    }

    async fn review(&self, token: &str) -> Result<UserInfo, Refused> {
        let audience = &self.accounts.audience;
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![audience.clone()]) },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = within(api.create(&PostParams::default(), &review)).await?.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            let reason = status.error.unwrap_or_else(|| "no reason given".to_owned());
            return Err(Refused::Unauthenticated(reason));
        }
        let found = status.audiences.unwrap_or_default();
        if !found.contains(audience) {
            return Err(Refused::Audience { found: found.join(", "), wanted: audience.clone() });
        }
        Ok(status.user.unwrap_or_default())
    }

    async fn node_of(&self, namespace: &str, pod: &str, uid: &str) -> Result<String, Refused> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let found = within(api.get_opt(pod)).await?.filter(|p| p.metadata.uid.as_deref() == Some(uid));
        found.and_then(|p| p.spec?.node_name).ok_or(Refused::NotAPod)
    }

    async fn is_node(&self, name: &str) -> Result<bool, Refused> {
        let api: Api<k8s_openapi::api::core::v1::Node> = Api::all(self.client.clone());
        Ok(within(api.get_metadata_opt(name)).await?.is_some())
    }
}

fn names_fit(
    found: &str,
    wanted: &NodeName,
    refused: impl Fn(String, String) -> Refused,
) -> Result<(), Refused> {
    if found == wanted.as_str() { Ok(()) } else { Err(refused(found.to_owned(), wanted.to_string())) }
}

async fn within<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Refused> {
    match tokio::time::timeout(REVIEW, call).await {
        Ok(answer) => answer.map_err(|error| Refused::Unavailable(crate::chain(&error))),
        Err(_late) => Err(Refused::Unavailable("no answer".to_owned())),
    }
}
