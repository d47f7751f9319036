//! The gRPC routes. Written out rather than generated: three methods, and who may call which is seen in one place.

use std::{convert::Infallible, sync::Arc, task::Poll};

use futures::future::BoxFuture;
use mesh_api::{model, xds};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{Service, http},
    server::Grpc,
};
use tonic_prost::ProstCodec;

use super::{Shared, agent, peer::Peer, stream};

const ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const JOIN: &str = "/selvage.mesh.v1.NodeAgent/Join";
const REPORT: &str = "/selvage.mesh.v1.NodeAgent/Report";

/// Header in which a proxy says on which machine it runs.
const MACHINE: &str = "selvage-machine";
const MAX_MACHINE: usize = 256;

/// A reconnecting proxy says which versions it has: some 80 bytes for each of up to 200,000 resources.
const MAX_DISCOVERY_REQUEST: usize = 16 << 20;
/// Join and Report carry a certificate request or a few addresses.
const MAX_AGENT_REQUEST: usize = 64 << 10;

/// All that the server answers.
#[derive(Clone)]
pub(crate) struct Routes {
    shared: Arc<Shared>,
}

impl Routes {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Service<http::Request<Body>> for Routes {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _cx: &mut std::task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = self.shared.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                ADS => {
                    let codec =
                        ProstCodec::<xds::DeltaDiscoveryResponse, xds::DeltaDiscoveryRequest>::default();
                    let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_DISCOVERY_REQUEST);
                    let call = tower::service_fn(move |r: Request<Streaming<xds::DeltaDiscoveryRequest>>| {
                        let shared = shared.clone();
                        async move {
                            let (peer, node) = authenticated(&r)?;
                            agent::known(&shared, &node).await?;
                            let said = (machine(&r), r.into_inner());
                            Ok::<_, Status>(Response::new(stream::open(shared, peer, node, said)?))
                        }
                    });
                    grpc.streaming(call, request).await
                }
                JOIN => {
                    let codec = ProstCodec::<model::JoinResponse, model::JoinRequest>::default();
                    let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_AGENT_REQUEST);
                    let call = tower::service_fn(move |r: Request<model::JoinRequest>| {
                        let shared = shared.clone();
                        async move {
                            let peer = peer(&r)?;
                            agent::join(&shared, &peer, r.into_inner()).await.map(Response::new)
                        }
                    });
                    grpc.unary(call, request).await
                }
                REPORT => {
                    let codec = ProstCodec::<model::ReportResponse, model::ReportRequest>::default();
                    let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_AGENT_REQUEST);
                    let call = tower::service_fn(move |r: Request<model::ReportRequest>| {
                        let shared = shared.clone();
                        async move {
                            let (_, node) = authenticated(&r)?;
                            agent::report(&shared, &node, r.into_inner()).await.map(Response::new)
                        }
                    });
                    grpc.unary(call, request).await
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("connection without a peer"))
}

/// The machine that the caller says it is; what is no text of a sane length is nothing.
fn machine<T>(request: &Request<T>) -> Arc<str> {
    let said = request.metadata().get(MACHINE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if said.len() <= MAX_MACHINE { said.into() } else { "".into() }
}

/// The node that the peer's certificate names; joining is the only call that works without one.
fn authenticated<T>(request: &Request<T>) -> Result<(Peer, Arc<str>), Status> {
    let peer = peer(request)?;
    let node = peer.node.clone().ok_or_else(|| Status::unauthenticated("a node certificate is required"))?;
    Ok((peer, node))
}
