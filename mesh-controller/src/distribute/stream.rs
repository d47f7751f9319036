//! Drives one proxy's session over its gRPC stream.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_api::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    Shared,
    agent::REMOVED,
    copies,
    peer::Peer,
    session::{Answered, Refusal, Session},
    sessions::{End, SessionHandle},
};

/// Responses between us and the socket; more wait as names in the session.
const QUEUE: usize = 2;

/// What a node is told whose controller stops: it goes on with another one at once.
const STOPPING: &str = "controller is stopping; go on with another one";
/// Nodes begin to be told so after this part of the time that there is for it: first the cluster has to lead new
/// connections elsewhere.
const HANDOVER_FROM: f64 = 0.3;

type Responses = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

/// Starts the session of a proxy.
pub(crate) fn open(
    shared: Arc<Shared>,
    peer: Peer,
    node: Arc<str>,
    (machine, requests): (Arc<str>, Streaming<DeltaDiscoveryRequest>),
) -> Result<Responses, Status> {
    if shared.tasks.drain().has_begun() {
        return Err(Status::unavailable(STOPPING));
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    let handle = shared
        .sessions
        .open(&node, peer.address, machine.clone())
        .ok_or_else(|| Status::resource_exhausted("too many streams of this node are open"))?;
    let tasks = shared.tasks.clone();
    copies::opened(&shared, &node, handle.id(), machine, peer.address);
    tasks.spawn("session", async move {
        let session = Session::of(node.clone());
        let stream = Stream { shared, node, handle, requests, sender, session };
        stream.run(peer.expires).await;
    });
    Ok(ReceiverStream::new(receiver))
}

/// Resolves some time after the controller was told to stop: not all nodes go at once.
async fn handover(shared: &Shared) {
    shared.tasks.drain().begun().await;
    let share = rand::random_range(HANDOVER_FROM..1.0);
    tokio::time::sleep(shared.handover.mul_f64(share)).await;
}

struct Stream {
    shared: Arc<Shared>,
    node: Arc<str>,
    handle: SessionHandle,
    requests: Streaming<DeltaDiscoveryRequest>,
    sender: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    session: Session,
}

impl Stream {
    async fn run(mut self, expires: Option<SystemTime>) {
        tracing::info!(node = %self.node, "proxy connected");
        let end = self.serve(expires).await;
        match end {
            Ok(()) => tracing::info!(node = %self.node, "proxy disconnected"),
            Err(status) => {
                tracing::warn!(node = %self.node, code = ?status.code(), reason = status.message(), "stream ended");
                // The queue may be full of what the proxy does not read; then the end of the stream has to do.
                self.sender.try_send(Err(status)).ok();
            }
        }
    }

    async fn serve(&mut self, expires: Option<SystemTime>) -> Result<(), Status> {
        let (shared, sender) = (self.shared.clone(), self.sender.clone());
        let mut published = shared.store.subscribe();
        let valid_for = expires.and_then(|at| at.duration_since(SystemTime::now()).ok()).unwrap_or_default();
        // A clock step must not keep a stream alive for years.
        let expiry = tokio::time::sleep(valid_for.min(Duration::from_secs(366 * 86_400)));
        tokio::pin!(expiry);
        let drain = shared.tasks.drain().clone();
        let probes = self.handle.probes();
        let handover = handover(&shared);
        tokio::pin!(handover);
        loop {
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => self.on_request(request)?,
                    None => return Ok(()),
                },
                permit = sender.reserve(), if self.session.wants_to_send() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some((kind, response)) = self.session.next_response(&shared.store) {
                        shared.metrics.pushed(kind, &response);
                        self.handle.sends(kind, &response);
                        permit.send(Ok(response));
                        self.handle.sent(self.session.unanswered());
                    }
                }
                changed = published.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    published.mark_unchanged();
                    self.session
                        .on_change(&shared.store)
                        .map_err(|_| Status::aborted(Refusal::TooFarBehind.to_string()))?;
                    self.handle.progress(self.session.is_settled(), self.session.generation());
                }
                () = &mut expiry => return Err(Status::unauthenticated("node certificate has expired; renew it")),
                () = &mut handover => return Err(Status::unavailable(STOPPING)),
                () = drain.stop_accepting() => return Err(Status::unavailable(STOPPING)),
                () = probes.notified() => self.session.probe(),
                end = self.handle.ended() => return Err(match end {
                    End::Removed => Status::permission_denied(REMOVED),
                    End::Copied(how) => Status::failed_precondition(how),
                    End::Dead => Status::cancelled("no sign of life, and the node has come from elsewhere"),
                }),
            }
        }
    }

    fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        self.handle.heard();
        // Only the first request has to carry the node; whichever carries it must be honest.
        if let Some(claimed) = request.node.as_ref().map(|n| n.id.as_str())
            && claimed != &*self.node
        {
            self.shared.metrics.identity_mismatches.inc();
            let message =
                format!("the certificate is for node {}, the request claims {claimed:?}", self.node);
            return Err(Status::permission_denied(message));
        }
        if request.node.is_none() && !self.handle.is_identified() {
            return Err(Status::invalid_argument("the first request has to name the node"));
        }
        self.handle.identified(request.node.as_ref().map(|n| n.user_agent_name.as_str()));
        let answered =
            self.session.on_request(request, &self.shared.store).map_err(|refusal| match refusal {
                Refusal::TooFarBehind => Status::aborted(refusal.to_string()),
                Refusal::UnknownType(_) | Refusal::TooManyNames => {
                    Status::invalid_argument(refusal.to_string())
                }
            })?;
        match answered {
            Answered::Nothing => {}
            Answered::Ack(kind) => {
                self.shared.metrics.acks.with_label_values(&[kind.as_str()]).inc();
                self.handle.acknowledged(self.session.unanswered());
            }
            Answered::Nack(kind, reason) => {
                self.shared.metrics.nacks.with_label_values(&[kind.as_str()]).inc();
                tracing::warn!(node = %self.node, kind = kind.as_str(), reason, "proxy refused resources");
                self.handle.refused(kind, reason, self.session.unanswered());
            }
            Answered::Stale => self.shared.metrics.stale_answers.inc(),
        }
        self.handle.progress(self.session.is_settled(), self.session.generation());
        Ok(())
    }
}
