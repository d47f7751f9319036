//! Runs a query through the handler and keeps the encoded answer, for both transports.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hickory_proto::op::{Header, HeaderCounts, MessageType, Metadata, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};
use hickory_server::net::NetError;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;

use super::handler::Handler;
use super::metrics::Outcome;

/// Largest UDP answer to a client that does not say what it takes.
const PLAIN_UDP: u16 = 512;

/// The answer to the bytes of a query, or nothing when none is due: not to what is no query, and
/// above all not to answers, which would go back and forth for ever.
pub(crate) async fn answer(
    handler: &Handler,
    query: Vec<u8>,
    from: SocketAddr,
    protocol: Protocol,
) -> Option<Vec<u8>> {
    let Ok(header) = Header::read(&mut BinDecoder::new(&query)) else {
        handler.metrics().count(Outcome::Malformed);
        return None;
    };
    if header.metadata.message_type == MessageType::Response {
        handler.metrics().count(Outcome::Malformed);
        return None;
    }
    let Ok(request) = Request::from_bytes(query, from, protocol) else {
        handler.metrics().count(Outcome::Malformed);
        return form_error(&header);
    };
    let answer = Collect { protocol, bytes: Arc::default() };
    let taken = Arc::clone(&answer.bytes);
    handler.handle_request::<_, TokioTime>(&request, answer).await;
    taken.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The header alone: the rest of the query could not be read.
fn form_error(query: &Header) -> Option<Vec<u8>> {
    let mut metadata = Metadata::response_from_request(&query.metadata);
    metadata.response_code = ResponseCode::FormErr;
    Header { metadata, counts: HeaderCounts::default() }.to_bytes().ok()
}

#[derive(Clone)]
struct Collect {
    protocol: Protocol,
    bytes: Arc<Mutex<Option<Vec<u8>>>>,
}

#[async_trait::async_trait]
impl ResponseHandler for Collect {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let most = match self.protocol {
            Protocol::Udp => response.edns().map_or(PLAIN_UDP, |edns| edns.max_payload()),
            _ => u16::MAX,
        };
        let mut message = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut message);
        encoder.set_max_size(most);
        let info = response.destructive_emit(&mut encoder)?;
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
        Ok(info)
    }
}
