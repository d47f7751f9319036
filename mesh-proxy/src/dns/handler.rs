//! Turns a request into what [`Responder`] decides: checks first, header and EDNS around it.

use std::sync::Arc;

use hickory_proto::op::{Edns, Header, HeaderCounts, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::DNSClass;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

use super::metrics::{DnsMetrics, Outcome};
use super::respond::{Reply, Responder};

/// Largest UDP answer: what passes every network without fragments (DNS flag day 2020).
const MAX_UDP: u16 = 1232;

#[derive(Clone)]
pub(crate) struct Handler {
    responder: Arc<Responder>,
    metrics: DnsMetrics,
}

impl Handler {
    pub(crate) fn new(responder: Responder, metrics: DnsMetrics) -> Self {
        Self { responder: Arc::new(responder), metrics }
    }

    pub(crate) fn metrics(&self) -> &DnsMetrics {
        &self.metrics
    }

    async fn reply(&self, request: &Request) -> Reply {
        if request.metadata.op_code != OpCode::Query {
            return Reply::error(Outcome::Refused, ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else {
            return Reply::error(Outcome::Malformed, ResponseCode::FormErr);
        };
        if request.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            return Reply::error(Outcome::Malformed, ResponseCode::BADVERS);
        }
        if info.query.query_class() != DNSClass::IN {
            return Reply::error(Outcome::Refused, ResponseCode::Refused);
        }
        let from = request.src().ip();
        self.responder.reply(info.query.original().name(), info.query.query_type(), from).await
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut to: R,
    ) -> ResponseInfo {
        let reply = self.reply(request).await;
        self.metrics.count(reply.outcome);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = true;
        // Without this the client's offer of a larger answer is forgotten, and it is cut at 512.
        let edns = request.edns.as_ref().map(|theirs| {
            let mut ours = Edns::new();
            ours.set_max_payload(theirs.max_payload().clamp(512, MAX_UDP)).set_version(0);
            ours
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(metadata, &reply.answers, &reply.authorities, [], &reply.additionals);
        match to.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, client = %request.src(), "answer not sent");
                Header { metadata, counts: HeaderCounts::default() }.into()
            }
        }
    }
}
