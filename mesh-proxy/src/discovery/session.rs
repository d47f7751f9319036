//! One stream.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use mesh_api::{
    Resource, ResourceType,
    xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status},
};
use mesh_core::{Applied, Change};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use super::{Discovery, Versions};
use crate::{
    controller, identity,
    store::{Write, Written},
    tunnel_glue::Reach,
};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Requests that wait to be sent: the subscriptions, and one answer.
const QUEUE: usize = 16;
/// When all types have been answered and nothing came for this long, all is here.
const QUIET: Duration = Duration::from_millis(200);
/// In a mesh that never rests, all is here after this long at the latest: the first answers hold what there was when the
/// stream began.
const UNREST: Duration = Duration::from_secs(3);
/// How soon a report that failed is sent again.
const REPORT_AGAIN: Duration = Duration::from_secs(5);
/// Header that says on which machine this is.
const MACHINE: &str = "selvage-machine";
/// Longest text of a refusal.
const MAX_REFUSAL: usize = 8 << 10;

pub(super) struct Session {
    channel: Channel,
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    unanswered: BTreeSet<ResourceType>,
}

impl Session {
    pub(super) async fn open(channel: Channel, node: &str, versions: &Versions) -> Result<Self, Error> {
        let (requests, queue) = mpsc::channel(QUEUE);
        for kind in ResourceType::ALL {
            let request = DeltaDiscoveryRequest {
                node: Some(Node {
                    id: node.to_owned(),
                    user_agent_name: "mesh-proxy".to_owned(),
                    ..Node::default()
                }),
                type_url: kind.url().to_owned(),
                resource_names_subscribe: vec!["*".to_owned()],
                initial_resource_versions: versions.get(&kind).cloned().unwrap_or_default(),
                ..DeltaDiscoveryRequest::default()
            };
            requests.send(request).await?;
        }
        let mut stub = controller::stub(channel.clone());
        stub.ready().await?;
        let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
        let codec: ProstCodec<DeltaDiscoveryRequest, DeltaDiscoveryResponse> = ProstCodec::default();
        let mut request = tonic::Request::new(ReceiverStream::new(queue));
        if let Ok(machine) = identity::machine::name().parse() {
            request.metadata_mut().insert(MACHINE, machine);
        }
        let call = stub.streaming(request, PathAndQuery::from_static(path), codec);
        let responses = call.await?.into_inner();
        Ok(Self { channel, requests, responses, unanswered: ResourceType::ALL.into() })
    }

    pub(super) async fn run(
        &mut self,
        discovery: &mut Discovery,
        addresses: &mut watch::Receiver<Reach>,
    ) -> Result<(), Error> {
        addresses.mark_changed();
        let mut reporting = std::pin::pin!(report_forever(
            self.channel.clone(),
            discovery.shared.node.to_string(),
            discovery.metrics.clock_ahead.clone(),
            addresses.clone()
        ));
        let mut settled = false;
        let mut answered_at = None;
        loop {
            let now = Instant::now();
            if self.unanswered.is_empty() && answered_at.is_none() {
                answered_at = Some(now);
            }
            let settle_at = answered_at.filter(|_| !settled).map(|t: Instant| (t + UNREST).min(now + QUIET));
            tokio::select! {
                response = self.responses.message() => {
                    let Some(response) = response? else {
                        tracing::info!("the controller ended the configuration stream");
                        return Ok(());
                    };
                    self.on_response(discovery, response).await?;
                }
                () = tokio::time::sleep_until(settle_at.unwrap_or(now)), if settle_at.is_some() => {
                    settled = true;
                    mesh_net::memory::release_unused();
                    self.keep(discovery, Vec::new(), true).await?;
                    if !discovery.complete {
                        discovery.on_complete();
                    }
                }
                () = &mut reporting => {}
            }
        }
    }

    async fn on_response(
        &mut self,
        discovery: &mut Discovery,
        response: DeltaDiscoveryResponse,
    ) -> Result<(), Error> {
        let Some(kind) = ResourceType::from_url(&response.type_url) else {
            let reason = format!("type {:?} is not known here", response.type_url);
            return self.answer(response.type_url, response.nonce, Some(reason)).await;
        };
        let (refused, writes) = discovery.take(kind, response.resources, response.removed_resources);
        self.keep(discovery, writes, false).await?;
        self.answer(response.type_url, response.nonce, refused).await?;
        self.unanswered.remove(&kind);
        Ok(())
    }

    /// Stores what is in force. A store that has lost everything is refilled by a new stream that has nothing yet.
    async fn keep(&self, discovery: &mut Discovery, writes: Vec<Write>, complete: bool) -> Result<(), Error> {
        if discovery.store.write(writes, complete).await == Written::Lost {
            discovery.versions.clear();
            return Err("the snapshot store has to be refilled".into());
        }
        Ok(())
    }

    async fn answer(&self, type_url: String, nonce: String, refused: Option<String>) -> Result<(), Error> {
        let request = DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            // 3 is INVALID_ARGUMENT.
            error_detail: refused.map(|message| Status { code: 3, message }),
            ..DeltaDiscoveryRequest::default()
        };
        Ok(self.requests.send(request).await?)
    }
}

async fn report_forever(
    channel: Channel,
    node: String,
    clock_ahead: prometheus::IntGauge,
    mut addresses: watch::Receiver<Reach>,
) {
    loop {
        let now = addresses.borrow_and_update().clone();
        match controller::report(channel.clone(), now.request(&node)).await {
            Ok(reported) => clock_ahead.set(reported.clock_ahead.unwrap_or(0)),
            Err(error) => {
                tracing::warn!(error = %crate::chain(&error), "the controller did not take this node's addresses");
                tokio::time::sleep(REPORT_AGAIN).await;
                continue;
            }
        }
        if addresses.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

impl Discovery {
    /// Puts an answer in force. Gives what is refused, with reasons, and what is to be stored.
    fn take(
        &mut self,
        kind: ResourceType,
        resources: Vec<mesh_api::xds::Resource>,
        removed: Vec<String>,
    ) -> (Option<String>, Vec<Write>) {
        let mut refused = Vec::new();
        let mut changes = Vec::new();
        let mut writes = Vec::new();
        for r in resources {
            let value = r.resource.map(|any| any.value).unwrap_or_default();
            match Resource::decode(kind, &r.name, &value) {
                Ok(decoded) if decoded.name() == r.name => {
                    changes.push(Change::Set(decoded));
                    writes.push(Write { kind, name: r.name, value: Some((r.version, value)) });
                }
                Ok(decoded) => refused.push((r.name, format!("content is for {:?}", decoded.name()))),
                Err(error) => refused.push((r.name, error.to_string())),
            }
        }
        for name in removed {
            changes.push(Change::Remove(kind, name.clone()));
            writes.push(Write { kind, name, value: None });
        }
        let applied = self.shared.apply(changes);
        refused.extend(applied.rejected.iter().map(|r| (r.name.clone(), r.reason.clone())));
        writes.retain(|w| !refused.iter().any(|(name, _)| *name == w.name));
        self.note(kind, &writes, &applied);
        for (name, reason) in &refused {
            self.metrics.refused.with_label_values(&[kind.as_str()]).inc();
            tracing::warn!(
                kind = kind.as_str(),
                name,
                reason,
                "resource is refused; the last good one stays"
            );
        }
        (refusal(&refused), writes)
    }

    fn note(&mut self, kind: ResourceType, writes: &[Write], applied: &Applied) {
        let versions = self.versions.entry(kind).or_default();
        for w in writes {
            match &w.value {
                Some((version, _)) => versions.insert(w.name.clone(), version.clone()),
                None => versions.remove(&w.name),
            };
        }
        self.count();
        self.metrics.responses.inc();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.metrics.last_update.set(i64::try_from(now).unwrap_or(i64::MAX));
        tracing::debug!(
            kind = kind.as_str(),
            changes = writes.len(),
            rules_compiled = applied.rules_compiled,
            clusters_built = applied.clusters_built,
            "configuration applied"
        );
    }
}

fn refusal(refused: &[(String, String)]) -> Option<String> {
    if refused.is_empty() {
        return None;
    }
    let mut text = String::new();
    for (name, reason) in refused {
        if text.len() > MAX_REFUSAL {
            text.push_str("; …");
            break;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(name);
        text.push_str(": ");
        text.push_str(reason);
    }
    Some(text)
}

#[cfg(test)]
mod tests;
