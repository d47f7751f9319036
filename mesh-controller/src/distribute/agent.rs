//! Join and Report: a node gets its certificate and says where it can be reached.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_api::model::{JoinRequest, JoinResponse, ReportRequest, ReportResponse};
use mesh_ca::{JoinToken, NodeName, StoreError, UseError};
use tonic::Status;

use super::{Shared, peer::Peer};
use crate::{
    enrol::{Refused, Reviewer},
    peer_id,
    registry::{Joined, NodeRecord, Origin, Said},
};

const MAX_ADDRESSES: usize = 32;
const MAX_ADDRESS: usize = 512;
const MAX_RESERVATIONS: usize = 16;
/// Kinds of NAT; a node that knows others says so in vain.
const NATS: [&str; 6] =
    ["unknown", "none", "full-cone", "address-restricted", "port-restricted", "symmetric"];

/// What a node is told that is not in the registry.
pub(super) const REMOVED: &str = "node was removed from the mesh; it has to join anew";

/// What the agent calls need; the CA key is reachable from nowhere else.
pub(crate) struct Issuer {
    pub(crate) authority: crate::state::Cas,
    pub(crate) tokens: mesh_ca::TokenStore,
    pub(crate) ttl: Duration,
    /// Who vouches for pods; `None` without a cluster.
    pub(crate) reviewer: Option<Reviewer>,
}

/// How a node proves itself.
enum Proof {
    /// By the certificate of its connection.
    Certificate,
    JoinToken(String),
    ServiceAccount(String),
}

impl Proof {
    fn of(request: &mut JoinRequest) -> Self {
        let take = std::mem::take;
        match (request.service_account_token.is_empty(), request.token.is_empty()) {
            (false, _) => Self::ServiceAccount(take(&mut request.service_account_token)),
            (true, false) => Self::JoinToken(take(&mut request.token)),
            (true, true) => Self::Certificate,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::JoinToken(_) => "join_token",
            Self::ServiceAccount(_) => "service_account",
        }
    }
}

/// A refusal: what the node is told, and how it is counted.
struct Denied(Status, &'static str);

impl Denied {
    fn bad(error: impl std::fmt::Display) -> Self {
        Self(Status::invalid_argument(error.to_string()), "malformed")
    }

    fn internal(message: &'static str) -> Self {
        Self(Status::internal(message), "error")
    }

    fn store(error: &StoreError, message: &'static str) -> Self {
        tracing::error!(error = %crate::chain(error), "{message}");
        Self::internal(message)
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default()
}

pub(crate) async fn join(
    shared: &Arc<Shared>,
    peer: &Peer,
    mut request: JoinRequest,
) -> Result<JoinResponse, Status> {
    let Ok(_permit) = shared.joins.try_acquire() else {
        return Err(Status::resource_exhausted("too many nodes join at once; try again"));
    };
    let proof = Proof::of(&mut request);
    let (node, method) = (request.node.clone(), proof.label());
    let outcome = admit(shared, peer, request, proof).await;
    let counted = outcome.as_ref().err().map_or("ok", |denied| denied.1);
    shared.metrics.enrolments.with_label_values(&[method, counted]).inc();
    let label = outcome.as_ref().map_or_else(|denied| denied.0.code().description(), |_| "ok");
    shared.metrics.joins.with_label_values(&[label]).inc();
    match &outcome {
        Ok(_) => tracing::info!(node, method, peer = %peer.address, "node has its certificate"),
        Err(Denied(status, _)) => {
            let node: String = node.chars().take(64).collect();
            tracing::warn!(node, method, peer = %peer.address, reason = status.message(), "join refused");
        }
    }
    outcome.map_err(|denied| denied.0)
}

async fn admit(
    shared: &Arc<Shared>,
    peer: &Peer,
    request: JoinRequest,
    proof: Proof,
) -> Result<JoinResponse, Denied> {
    let node = NodeName::new(&request.node).map_err(Denied::bad)?;
    let peer_id = peer_id::verify(&request.peer_public_key, &request.peer_signature, &request.csr_der)
        .map_err(Denied::bad)?;
    let record = find(shared, node.as_str()).await?;
    let (mut origin, mut token) = (None, None);
    match proof {
        Proof::Certificate => renewable(peer, &node, record.as_ref(), &peer_id)?,
        Proof::JoinToken(text) => {
            token = Some(JoinToken::parse(&text).map_err(Denied::bad)?);
            origin = Some(Origin::JoinToken);
        }
        Proof::ServiceAccount(text) => {
            let reviewer = shared.issuer.reviewer.as_ref();
            let admitted = match reviewer {
                Some(reviewer) => reviewer.admit(&text, &node, now()).await,
                None => Err(Refused::NotHere),
            };
            origin = Some(admitted.map_err(not_admitted)?);
        }
    }
    keys_are_free(shared, &node, record.as_ref(), &peer_id)?;
    let in_cluster = shared.members.has_node(node.as_str());
    let joined = Joined { peer_id, origin, in_cluster };
    let shared = shared.clone();
    // Signing and the store wait for the disk or the API server.
    let issued = tokio::task::spawn_blocking(move || issue(&shared, &node, token, &request, &joined));
    issued.await.map_err(|_| Denied::internal("join was interrupted"))?
}

/// Whether a certificate may be renewed by the connection's own.
fn renewable(peer: &Peer, node: &NodeName, record: Option<&NodeRecord>, peer_id: &str) -> Result<(), Denied> {
    match &peer.node {
        Some(certified) if **certified == *node.as_str() => {}
        Some(certified) => {
            let message = format!("the certificate is for node {certified}, not for {node}");
            return Err(Denied(Status::permission_denied(message), "other_node"));
        }
        None => {
            let message = "a join token, a service-account token or a node certificate is required";
            return Err(Denied(Status::unauthenticated(message), "nothing"));
        }
    }
    match record {
        None => Err(Denied(Status::permission_denied(REMOVED), "removed")),
        Some(record) if record.peer_id != peer_id => {
            let message = format!(
                "node {node} has joined with another key since (peer {}, this is {peer_id}): a copy of its disk, or it                  has lost its state and was set up again",
                record.peer_id
            );
            Err(Denied(Status::permission_denied(message), "other_key"))
        }
        Some(_) => Ok(()),
    }
}

/// One key, one node; and while a node is connected, one node, one key.
fn keys_are_free(
    shared: &Shared,
    node: &NodeName,
    record: Option<&NodeRecord>,
    peer_id: &str,
) -> Result<(), Denied> {
    if let Some(other) = shared.registry.other_holder(peer_id, node.as_str()) {
        let message = format!(
            "the peer key of {node} belongs to node {other}. If {other} was renamed: `meshctl node remove {other}`, or              delete its Node object. If its disk was copied: remove the state directory of {node}, so that it makes a key              of its own"
        );
        return Err(Denied(Status::failed_precondition(message), "key_of_another"));
    }
    let another = record.is_some_and(|r| r.peer_id != peer_id);
    if another && let Some((_, connected)) = shared.sessions.of(node.as_str()).first() {
        let message = format!(
            "node {node} is connected with another key from {}: two machines have one name, or its state was lost a              moment ago and the old connection has not ended yet",
            connected.peer.ip()
        );
        return Err(Denied(Status::failed_precondition(message), "connected"));
    }
    Ok(())
}

fn issue(
    shared: &Shared,
    node: &NodeName,
    token: Option<JoinToken>,
    request: &JoinRequest,
    joined: &Joined,
) -> Result<JoinResponse, Denied> {
    let (now, issuer) = (now(), &shared.issuer);
    // Whoever holds the token and this key pair is who it was meant for; the rest is the token store's.
    let spent_on = [request.csr_der.as_slice(), &request.peer_public_key].concat();
    // Strangers get no signature to compute, and a bad request does not cost the token.
    if let Some(token) = &token {
        issuer.tokens.check(token, node, &spent_on, now).map_err(refused)?;
    }
    let authority = issuer.authority.borrow().clone();
    let certificate = authority.sign_node(node, &request.csr_der, issuer.ttl, now).map_err(Denied::bad)?;
    if let Some(token) = &token {
        issuer.tokens.spend(token, node, &spent_on, now).map_err(refused)?;
    }
    shared
        .registry
        .joined(node.as_str(), joined, now)
        .map_err(|e| Denied::store(&e, "the node record could not be written"))?;
    Ok(JoinResponse {
        certificate_der: certificate.to_vec(),
        ca_der: authority.certificate().to_vec(),
        trust_domain: authority.trust_domain().to_string(),
        roots_der: authority.trusted().iter().map(|ca| ca.to_vec()).collect(),
    })
}

/// A node's record; it may have joined at another controller a moment ago.
async fn find(shared: &Arc<Shared>, node: &str) -> Result<Option<NodeRecord>, Denied> {
    if let Some(record) = shared.registry.get(node) {
        return Ok(Some(record));
    }
    let (registry, node) = (shared.registry.clone(), node.to_owned());
    let found = tokio::task::spawn_blocking(move || registry.find(&node)).await;
    let found = found.map_err(|_| Denied::internal("the look into the node registry was interrupted"))?;
    found.map_err(|e| Denied::store(&e, "the node registry could not be read"))
}

/// A node that was removed gets nothing, however long its certificate still holds.
pub(super) async fn known(shared: &Arc<Shared>, node: &str) -> Result<(), Status> {
    match find(shared, node).await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Status::permission_denied(REMOVED)),
        Err(Denied(status, _)) => Err(status),
    }
}

fn not_admitted(refused: Refused) -> Denied {
    let (message, label) = (refused.to_string(), refused.label());
    let status = match refused {
        Refused::Malformed(_) => Status::invalid_argument(message),
        Refused::Unauthenticated(_) | Refused::Audience { .. } => Status::unauthenticated(message),
        Refused::Expired(_) | Refused::NotHere => Status::failed_precondition(message),
        Refused::Unavailable(_) => Status::unavailable(message),
        Refused::Account { .. }
        | Refused::NotAPod
        | Refused::OtherNode { .. }
        | Refused::OtherPod { .. }
        | Refused::NodesName(_) => Status::permission_denied(message),
    };
    Denied(status, label)
}

fn refused(error: UseError) -> Denied {
    let message = error.to_string();
    match error {
        UseError::Unknown => Denied(Status::unauthenticated(message), "unknown"),
        UseError::WrongNode { .. } => Denied(Status::permission_denied(message), "other_node"),
        UseError::Expired { .. } => Denied(Status::failed_precondition(message), "expired"),
        UseError::Replayed => Denied(Status::already_exists(message), "replayed"),
        UseError::Store(source) => Denied::store(&source, "the join token could not be checked"),
    }
}

pub(crate) async fn report(
    shared: &Arc<Shared>,
    certified: &str,
    request: ReportRequest,
) -> Result<ReportResponse, Status> {
    if request.node != certified {
        let message = format!("the certificate is for node {certified}, the report for {:?}", request.node);
        return Err(Status::permission_denied(message));
    }
    if request.addresses.len() > MAX_ADDRESSES {
        return Err(Status::invalid_argument(format!("more than {MAX_ADDRESSES} addresses")));
    }
    for address in &request.addresses {
        if !address.starts_with('/') || address.len() > MAX_ADDRESS || address.contains("/p2p/") {
            return Err(Status::invalid_argument(format!(
                "{address:?} is not a multiaddr without a peer id"
            )));
        }
    }
    if request.reservations.len() > MAX_RESERVATIONS {
        return Err(Status::invalid_argument(format!("more than {MAX_RESERVATIONS} reservations")));
    }
    for circuit in &request.reservations {
        if !circuit.starts_with('/') || circuit.len() > MAX_ADDRESS || !circuit.ends_with("/p2p-circuit") {
            return Err(Status::invalid_argument(format!("{circuit:?} is not the address of a circuit")));
        }
    }
    let shared = shared.clone();
    let written = tokio::task::spawn_blocking(move || {
        let version = request.version.chars().take(100).collect();
        let nat = if NATS.contains(&request.nat.as_str()) { request.nat } else { String::new() };
        let (addresses, relay, reservations) = (request.addresses, request.relay, request.reservations);
        let said = Said { addresses, relay, nat, reservations, version };
        shared.registry.reported(&request.node, &said, now())
    });
    match written.await {
        Ok(Ok(true)) => Ok(ReportResponse {}),
        Ok(Ok(false)) => Err(Status::failed_precondition("node is not in the registry; join first")),
        Ok(Err(error)) => {
            tracing::error!(error = %crate::chain(&error), "node record");
            Err(Status::internal("the node record could not be written"))
        }
        Err(_) => Err(Status::internal("report was interrupted")),
    }
}
