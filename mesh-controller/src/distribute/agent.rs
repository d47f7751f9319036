//! Join and Report: a node gets its certificate and says where it can be reached.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_api::model::{JoinRequest, JoinResponse, ReportRequest, ReportResponse};
use mesh_ca::{JoinToken, NodeName, UseError};
use tonic::Status;

use super::{Shared, peer::Peer};
use crate::{peer_id, registry::Said};

const MAX_ADDRESSES: usize = 32;
const MAX_ADDRESS: usize = 512;
const MAX_RESERVATIONS: usize = 16;
/// Kinds of NAT; a node that knows others says so in vain.
const NATS: [&str; 6] =
    ["unknown", "none", "full-cone", "address-restricted", "port-restricted", "symmetric"];

/// What the agent calls need; the CA key is reachable from nowhere else.
pub(crate) struct Issuer {
    pub(crate) authority: mesh_ca::Authority,
    pub(crate) tokens: mesh_ca::TokenStore,
    pub(crate) ttl: Duration,
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default()
}

pub(crate) async fn join(
    shared: &Arc<Shared>,
    peer: &Peer,
    request: JoinRequest,
) -> Result<JoinResponse, Status> {
    let Ok(_permit) = shared.joins.try_acquire() else {
        return Err(Status::resource_exhausted("too many nodes join at once; try again"));
    };
    let node = request.node.clone();
    let outcome = admit(shared, peer, request).await;
    let label = outcome.as_ref().map_or_else(|status| status.code().description(), |_| "ok");
    shared.metrics.joins.with_label_values(&[label]).inc();
    match &outcome {
        Ok(_) => tracing::info!(node, peer = %peer.address, "node joined"),
        Err(status) => {
            let node: String = node.chars().take(64).collect();
            tracing::warn!(node, peer = %peer.address, reason = status.message(), "join refused");
        }
    }
    outcome
}

async fn admit(shared: &Arc<Shared>, peer: &Peer, request: JoinRequest) -> Result<JoinResponse, Status> {
    let node = NodeName::new(&request.node).map_err(|e| Status::invalid_argument(e.to_string()))?;
    let peer_id = peer_id::verify(&request.peer_public_key, &request.peer_signature, &request.csr_der)
        .map_err(|e| Status::invalid_argument(e.to_string()))?;
    let renewal = request.token.is_empty();
    if renewal {
        match &peer.node {
            Some(certified) if **certified == *node.as_str() => {}
            Some(certified) => {
                let message = format!("the certificate is for node {certified}, not for {node}");
                return Err(Status::permission_denied(message));
            }
            None => return Err(Status::unauthenticated("a join token or a node certificate is required")),
        }
        if !shared.registry.knows(node.as_str()) {
            return Err(Status::permission_denied(
                "node was removed from the mesh; it needs a new join token",
            ));
        }
    }
    if let Some(other) = shared.registry.other_holder(&peer_id, node.as_str()) {
        let message =
            format!("the peer key belongs to node {other}; remove the copied key so that a new one is made");
        return Err(Status::failed_precondition(message));
    }
    let shared = shared.clone();
    // Signing and the token store wait for the disk.
    let admitted = tokio::task::spawn_blocking(move || {
        let (now, issuer) = (now(), &shared.issuer);
        // Whoever holds the token and this key pair is who it was meant for; the rest is the token store's.
        let spent_on = [request.csr_der.as_slice(), &request.peer_public_key].concat();
        let token = match request.token.as_str() {
            "" => None,
            text => Some(JoinToken::parse(text).map_err(|e| Status::invalid_argument(e.to_string()))?),
        };
        // Strangers get no signature to compute, and a bad request does not cost the token.
        if let Some(token) = &token {
            issuer.tokens.check(token, &node, &spent_on, now).map_err(refused)?;
        }
        let certificate = issuer
            .authority
            .sign_node(&node, &request.csr_der, issuer.ttl, now)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        if let Some(token) = &token {
            issuer.tokens.spend(token, &node, &spent_on, now).map_err(refused)?;
        }
        shared.registry.joined(node.as_str(), &peer_id, now).map_err(|e| {
            tracing::error!(error = %crate::chain(&e), "node record");
            Status::internal("the node record could not be written")
        })?;
        Ok(JoinResponse {
            certificate_der: certificate.to_vec(),
            ca_der: shared.issuer.authority.certificate().to_vec(),
            trust_domain: shared.issuer.authority.trust_domain().to_string(),
        })
    });
    admitted.await.map_err(|_| Status::internal("join was interrupted"))?
}

fn refused(error: UseError) -> Status {
    let message = error.to_string();
    match error {
        UseError::Unknown => Status::unauthenticated(message),
        UseError::WrongNode { .. } => Status::permission_denied(message),
        UseError::Expired { .. } => Status::failed_precondition(message),
        UseError::Replayed => Status::already_exists(message),
        UseError::Store(source) => {
            tracing::error!(error = %crate::chain(&source), "join tokens");
            Status::internal("the join token could not be checked")
        }
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
        shared.registry.reported(&request.node, Said { addresses, relay, nat, reservations, version }, now())
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
