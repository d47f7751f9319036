//! A gRPC echo service over plain HTTP/2 frames: small enough to see every byte of it, so that a test can
//! tell whose fault a missing trailer is.
//!
//! ```text
//! service selvage.echo.v1.Echo {
//!   rpc Unary (EchoRequest) returns (EchoReply);
//!   rpc Server(EchoRequest) returns (stream EchoReply);   // `count` replies, `delay_ms` apart
//!   rpc Client(stream EchoRequest) returns (EchoReply);   // the number of requests as `sequence`
//!   rpc Bidi  (stream EchoRequest) returns (stream EchoReply);
//! }
//! ```

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use prost::Message;

use super::{http::Body, serve::Shared};

/// A message may not be larger.
const LARGEST: usize = 4 << 20;
/// The service's path prefix.
pub const SERVICE: &str = "/selvage.echo.v1.Echo/";

/// What is asked.
#[derive(Clone, PartialEq, Message)]
pub struct EchoRequest {
    /// Comes back.
    #[prost(string, tag = "1")]
    pub text: String,
    /// Number of replies of `Server`.
    #[prost(uint32, tag = "2")]
    pub count: u32,
    /// Wait before each reply.
    #[prost(uint32, tag = "3")]
    pub delay_ms: u32,
    /// Answer with that gRPC status.
    #[prost(uint32, tag = "4")]
    pub status: u32,
}

/// What is answered.
#[derive(Clone, PartialEq, Message)]
pub struct EchoReply {
    /// What was asked.
    #[prost(string, tag = "1")]
    pub text: String,
    /// Who answers.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "3")]
    pub version: String,
    /// Its node.
    #[prost(string, tag = "4")]
    pub node: String,
    /// Position in the stream, from 0.
    #[prost(uint32, tag = "5")]
    pub sequence: u32,
}

/// Reads length-prefixed messages off a body.
#[derive(Debug)]
pub struct Reader<B> {
    body: B,
    buffer: BytesMut,
    /// Trailers, once the body has ended.
    pub trailers: Option<HeaderMap>,
}

impl<B> Reader<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    /// Starts at the beginning of a body.
    pub fn new(body: B) -> Self {
        Self { body, buffer: BytesMut::new(), trailers: None }
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// When the body breaks or does not hold whole messages.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, String> {
        loop {
            if self.buffer.len() >= 5 {
                let length =
                    u32::from_be_bytes([self.buffer[1], self.buffer[2], self.buffer[3], self.buffer[4]]);
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if self.buffer[0] != 0 || length > LARGEST {
                    return Err("compressed or oversized message".to_owned());
                }
                if self.buffer.len() >= 5 + length {
                    self.buffer.advance(5);
                    let message = self.buffer.split_to(length);
                    return M::decode(message).map(Some).map_err(|e| e.to_string());
                }
            }
            match self.body.frame().await {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err("the body ends inside a message".to_owned()),
                Some(Err(e)) => return Err(e.to_string()),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
            }
        }
    }
}

/// One message with its prefix.
#[must_use]
pub fn encode(message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.encoded_len());
    out.put_u8(0);
    out.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    out.put_slice(&message.encode_to_vec());
    out.freeze()
}

struct Call {
    reader: Reader<Incoming>,
    shared: Arc<Shared>,
    kind: Kind,
    sequence: u32,
    current: Option<EchoRequest>,
    ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unary,
    Server,
    Client,
    Bidi,
}

/// Answers one call.
pub async fn answer(request: Request<Incoming>, shared: &Arc<Shared>) -> Response<Body> {
    let kind = match request.uri().path().strip_prefix(SERVICE) {
        Some("Unary") => Some(Kind::Unary),
        Some("Server") => Some(Kind::Server),
        Some("Client") => Some(Kind::Client),
        Some("Bidi") => Some(Kind::Bidi),
        _ => None,
    };
    let mut response = match kind {
        None => {
            let mut response = Response::new(super::http::full(Bytes::new()));
            response.headers_mut().extend(status(12, "no such method"));
            response
        }
        Some(kind) => {
            let reader = Reader::new(request.into_body());
            let call =
                Call { reader, shared: Arc::clone(shared), kind, sequence: 0, current: None, ended: false };
            let frames = stream::unfold(call, |mut call| async move {
                let frame = call.next().await?;
                Some((Ok::<_, Infallible>(frame), call))
            });
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn status(code: u32, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    if let Ok(message) = HeaderValue::from_str(message) {
        trailers.insert("grpc-message", message);
    }
    trailers
}

impl Call {
    async fn next(&mut self) -> Option<Frame<Bytes>> {
        if self.ended {
            return None;
        }
        let frame = match self.step().await {
            Ok(Some(reply)) => Frame::data(encode(&reply)),
            Ok(None) => Frame::trailers(status(0, "")),
            Err(trailers) => Frame::trailers(trailers),
        };
        self.ended = frame.is_trailers();
        Some(frame)
    }

    async fn read(&mut self) -> Result<Option<EchoRequest>, HeaderMap> {
        let request: Option<EchoRequest> = self.reader.next().await.map_err(|e| status(13, &e))?;
        if let Some(request) = &request {
            if request.delay_ms > 0 && self.kind != Kind::Server {
                tokio::time::sleep(Duration::from_millis(request.delay_ms.into())).await;
            }
            if request.status != 0 {
                return Err(status(request.status, "as asked"));
            }
        }
        Ok(request)
    }

    async fn step(&mut self) -> Result<Option<EchoReply>, HeaderMap> {
        match self.kind {
            Kind::Unary if self.sequence > 0 => Ok(None),
            Kind::Unary => match self.read().await? {
                Some(request) => Ok(Some(self.reply(&request.text))),
                None => Err(status(13, "no request")),
            },
            Kind::Server => {
                if self.current.is_none() {
                    self.current = self.read().await?;
                }
                let Some(request) = self.current.clone().filter(|r| self.sequence < r.count) else {
                    return Ok(None);
                };
                if self.sequence > 0 {
                    tokio::time::sleep(Duration::from_millis(request.delay_ms.into())).await;
                }
                Ok(Some(self.reply(&request.text)))
            }
            Kind::Bidi => Ok(self.read().await?.map(|request| self.reply(&request.text))),
            Kind::Client if self.current.is_some() => Ok(None),
            Kind::Client => {
                let mut count = 0;
                let mut last = String::new();
                while let Some(request) = self.read().await? {
                    count += 1;
                    last = request.text;
                }
                self.current = Some(EchoRequest::default());
                self.sequence = count;
                Ok(Some(self.reply(&last)))
            }
        }
    }

    fn reply(&mut self, text: &str) -> EchoReply {
        let identity = &self.shared.identity;
        let sequence = self.sequence;
        self.sequence += 1;
        EchoReply {
            text: text.to_owned(),
            name: identity.name.clone(),
            version: identity.version.clone(),
            node: identity.node.clone(),
            sequence,
        }
    }
}
