//! Sends spans to the collector in batches, and again when that failed.

use std::{io, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use node_rt::Tasks;
use prost::Message;
use rand::RngExt;
use rustls::ClientConfig;

pub(crate) use super::connect::Through;
use super::{Protocol, Tracer, config::Endpoint, connect, otlp};

/// Waits between tries.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long one export may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long spans wait for others while the process ends.
const LAST_FLUSH: Duration = Duration::from_millis(50);
/// Longest answer that is read.
const MAX_ANSWER: usize = 64 << 10;
/// An export is no call that somebody wants to see.
const NOT_SAMPLED: HeaderValue =
    HeaderValue::from_static("00-00000000000000000000000000000001-0000000000000001-00");

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("read the certificates of tracing.caFile")]
    Certificates(#[source] io::Error),
    #[error("connect to the collector")]
    Connect(#[source] io::Error),
    #[error("talk to the collector")]
    Talk(#[source] hyper::Error),
    #[error("the collector did not answer in time")]
    Late,
    #[error("the collector is busy: {0}")]
    Busy(String, Option<Duration>),
    #[error("the collector refuses: {0}")]
    Refused(String),
    #[error("make the request")]
    Request(#[source] http::Error),
}

/// Follows the queue of a tracer.
pub(crate) struct Exporter {
    tracer: Arc<Tracer>,
    node: Arc<str>,
    through: Through,
    tasks: Tasks,
    tls: Option<Arc<ClientConfig>>,
    open: Option<Open>,
}

/// A connection that is there.
enum Open {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Exporter {
    pub(crate) fn new(tracer: Arc<Tracer>, node: Arc<str>, through: Through, tasks: Tasks) -> Self {
        Self { tracer, node, through, tasks, tls: None, open: None }
    }

    /// Exports until the drain cancels; while connections end, spans do not wait for others.
    pub(crate) async fn run(mut self) {
        let Ok(endpoint) = Endpoint::parse(&self.tracer.config().endpoint) else { return };
        let drain = self.tasks.drain().clone();
        let flush = Duration::from_millis(self.tracer.config().flush_millis);
        tokio::select! {
            never = self.follow(&endpoint, flush) => match never {},
            _ = drain.begun() => {}
        }
        match self.follow(&endpoint, LAST_FLUSH).await {}
    }

    async fn follow(&mut self, endpoint: &Endpoint, flush: Duration) -> std::convert::Infallible {
        let tracer = Arc::clone(&self.tracer);
        let config = tracer.config();
        let mut wait = FIRST_WAIT;
        loop {
            while tracer.queue().len() == 0 {
                tracer.queue().filled.notified().await;
            }
            if tracer.queue().len() < config.batch {
                tokio::time::sleep(flush).await;
            }
            match self.batch(endpoint).await {
                None => wait = FIRST_WAIT,
                Some(asked) => {
                    let chance: f64 = rand::rng().random_range(0.5..1.0);
                    tokio::time::sleep(asked.unwrap_or_else(|| wait.mul_f64(chance)).min(LONGEST_WAIT)).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    /// Exports one batch. Some: that failed and is to be tried again, perhaps after the time that the collector asks for.
    async fn batch(&mut self, endpoint: &Endpoint) -> Option<Option<Duration>> {
        let tracer = Arc::clone(&self.tracer);
        let (queue, counters) = (tracer.queue(), &tracer.queue().counters);
        // Whoever cancels this does not lose the spans.
        let mut held = Held { queue, batch: queue.take(tracer.config().batch) };
        let body = otlp::request(&held.batch, &self.node);
        let sent = tokio::time::timeout(PATIENCE, self.send(endpoint, &body)).await;
        let error = match sent.unwrap_or(Err(ExportError::Late)) {
            Ok(rejected) => {
                let count = held.batch.len() as u64;
                held.batch.clear();
                let rejected = rejected.min(count);
                counters.exported.inc_by(count - rejected);
                counters.refused.inc_by(rejected);
                return None;
            }
            Err(error) => error,
        };
        self.open = None;
        let text = crate::chain(&error);
        match error {
            ExportError::Refused(_) | ExportError::Request(_) => {
                tracing::warn!(error = %text, spans = held.batch.len(), "spans are lost");
                counters.refused.inc_by(held.batch.len() as u64);
                held.batch.clear();
                None
            }
            ExportError::Busy(_, after) => {
                counters.failures.inc();
                Some(after)
            }
            _ => {
                counters.failures.inc();
                tracing::debug!(error = %text, "spans wait for the collector");
                Some(None)
            }
        }
    }

    /// Sends one request; says how many spans of it the collector did not want.
    async fn send(&mut self, endpoint: &Endpoint, body: &otlp::ExportRequest) -> Result<u64, ExportError> {
        let request = self.request(endpoint, body)?;
        let open = match self.open.take().filter(Open::is_ready) {
            Some(open) => open,
            None => self.connect(endpoint).await?,
        };
        let response = match self.open.insert(open) {
            Open::Http1(sender) => sender.send_request(request).await,
            Open::Http2(sender) => sender.send_request(request).await,
        };
        let (head, body) = response.map_err(ExportError::Talk)?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|e| ExportError::Busy(e.to_string(), None))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let bytes = body.to_bytes();
        let message = match self.tracer.config().protocol {
            Protocol::Http => {
                judge_http(head.status, &head.headers)?;
                bytes
            }
            Protocol::Grpc => {
                judge_grpc(head.status, &head.headers, &trailers)?;
                bytes.slice(5.min(bytes.len())..)
            }
        };
        let answer = otlp::ExportResponse::decode(message).unwrap_or_default();
        let Some(partial) = answer.partial_success else { return Ok(0) };
        if !partial.error_message.is_empty() {
            tracing::warn!(spans = partial.rejected_spans, said = %partial.error_message, "the collector");
        }
        Ok(u64::try_from(partial.rejected_spans).unwrap_or(0))
    }

    fn request(
        &self,
        endpoint: &Endpoint,
        body: &otlp::ExportRequest,
    ) -> Result<Request<Full<Bytes>>, ExportError> {
        let config = self.tracer.config();
        let grpc = config.protocol == Protocol::Grpc;
        let mut bytes = BytesMut::new();
        if grpc {
            bytes.put_u8(0);
            bytes.put_u32(u32::try_from(body.encoded_len()).unwrap_or(u32::MAX));
        }
        // A BytesMut grows; it does not run out of room.
        let _never_full = body.encode(&mut bytes);
        let scheme = if endpoint.tls { "https" } else { "http" };
        let host =
            if endpoint.host.contains(':') { format!("[{}]", endpoint.host) } else { endpoint.host.clone() };
        let authority = format!("{host}:{}", endpoint.port);
        let builder = if grpc {
            let method = "opentelemetry.proto.collector.trace.v1.TraceService/Export";
            Request::post(format!("{scheme}://{authority}{}/{method}", endpoint.base))
                .version(Version::HTTP_2)
                .header(header::CONTENT_TYPE, "application/grpc")
                .header(header::TE, "trailers")
        } else {
            Request::post(format!("{}/v1/traces", endpoint.base))
                .header(header::HOST, authority)
                .header(header::CONTENT_TYPE, "application/x-protobuf")
        };
        let request = builder
            .header(header::USER_AGENT, concat!("selvage/", env!("CARGO_PKG_VERSION")))
            .header(super::context::TRACEPARENT, NOT_SAMPLED)
            .body(Full::new(bytes.freeze()));
        let mut request = request.map_err(ExportError::Request)?;
        for (name, value) in &config.headers {
            // Both were looked at when the configuration was read.
            if let (Ok(name), Ok(mut value)) =
                (name.parse::<HeaderName>(), HeaderValue::from_str(value.expose()))
            {
                value.set_sensitive(true);
                request.headers_mut().insert(name, value);
            }
        }
        Ok(request)
    }

    async fn connect(&mut self, endpoint: &Endpoint) -> Result<Open, ExportError> {
        let config = self.tracer.config();
        let h2 = config.protocol == Protocol::Grpc;
        if endpoint.tls && self.tls.is_none() {
            self.tls = Some(connect::tls(&config.ca_file, h2).map_err(ExportError::Certificates)?);
        }
        let tls = self.tls.as_ref().filter(|_| endpoint.tls);
        let stream = self.through.connect(endpoint, tls).await.map_err(ExportError::Connect)?;
        let io = TokioIo::new(stream);
        let ended = |result: Result<(), hyper::Error>| {
            if let Err(error) = result {
                tracing::debug!(%error, "connection to the collector");
            }
        };
        if h2 {
            let executor = TokioExecutor::new();
            let (sender, connection) = http2::handshake(executor, io).await.map_err(ExportError::Talk)?;
            self.tasks.spawn("trace export", async move { ended(connection.await) });
            return Ok(Open::Http2(sender));
        }
        let (sender, connection) = http1::handshake(io).await.map_err(ExportError::Talk)?;
        self.tasks.spawn("trace export", async move { ended(connection.await) });
        Ok(Open::Http1(sender))
    }
}

impl Open {
    fn is_ready(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_ready(),
            Self::Http2(sender) => sender.is_ready(),
        }
    }
}

/// Spans on their way; they go back if nobody says that they have arrived.
struct Held<'q> {
    queue: &'q super::Queue,
    batch: Vec<super::span::Span>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.batch.is_empty() {
            self.queue.give_back(std::mem::take(&mut self.batch));
        }
    }
}

/// What a status of OTLP/HTTP means.
fn judge_http(status: StatusCode, headers: &HeaderMap) -> Result<(), ExportError> {
    match status.as_u16() {
        200..300 => Ok(()),
        429 | 502 | 503 | 504 => {
            let after = headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
            Err(ExportError::Busy(status.to_string(), after.map(Duration::from_secs)))
        }
        _ => Err(ExportError::Refused(status.to_string())),
    }
}

/// What the end of an OTLP/gRPC call means.
fn judge_grpc(status: StatusCode, headers: &HeaderMap, trailers: &HeaderMap) -> Result<(), ExportError> {
    let said = |name: &str| trailers.get(name).or_else(|| headers.get(name)).and_then(|v| v.to_str().ok());
    let message = said("grpc-message").unwrap_or_default();
    match said("grpc-status").and_then(|v| v.parse::<u16>().ok()) {
        Some(0) => Ok(()),
        // Canceled, deadline, exhausted, aborted, out of range, unavailable, data loss: the protocol's list.
        Some(code @ (1 | 4 | 8 | 10 | 11 | 14 | 15)) => {
            Err(ExportError::Busy(format!("gRPC status {code} {message}"), None))
        }
        Some(code) => Err(ExportError::Refused(format!("gRPC status {code} {message}"))),
        None if status == StatusCode::OK => Err(ExportError::Busy("no gRPC status".to_owned(), None)),
        None => judge_http(status, headers),
    }
}
