//! A collector made of the official definitions: OTLP over gRPC and over HTTP, on one port.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::span::SpanKind,
};
use prost::Message;
use tokio::net::TcpListener;

/// A span as it came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) trace: String,
    pub(super) span: String,
    pub(super) parent: String,
    pub(super) server: bool,
    pub(super) name: String,
    pub(super) nanos: u64,
    attributes: HashMap<String, String>,
    resource: HashMap<String, String>,
}

impl Seen {
    pub(super) fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    pub(super) fn resource(&self, name: &str) -> &str {
        self.resource.get(name).map_or("", String::as_str)
    }
}

pub(super) struct Collector {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    refuses: Arc<AtomicBool>,
}

impl Collector {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, refuses) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::new(AtomicBool::new(false)));
        let (all, busy) = (Arc::clone(&seen), Arc::clone(&refuses));
        tokio::task::spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (all, busy) = (Arc::clone(&all), Arc::clone(&busy));
                let service = service_fn(move |request| take(request, Arc::clone(&all), Arc::clone(&busy)));
                tokio::task::spawn_local(async move {
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ended = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { address, seen, refuses }
    }

    /// Whether it says that it is busy.
    pub(super) fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::Relaxed);
    }

    /// All spans, once there are so many; more are a fault.
    pub(super) async fn spans(&self, count: usize) -> Vec<Seen> {
        let deadline = tokio::time::Instant::now() + super::LONG;
        loop {
            let seen = self.seen.lock().unwrap().clone();
            assert!(seen.len() <= count, "more than {count}: {seen:#?}");
            if seen.len() == count {
                return seen;
            }
            assert!(tokio::time::Instant::now() < deadline, "not {count} spans: {seen:#?}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

async fn take(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<Seen>>>,
    refuses: Arc<AtomicBool>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let grpc = request.headers()["content-type"] == "application/grpc";
    let expected =
        if grpc { "/opentelemetry.proto.collector.trace.v1.TraceService/Export" } else { "/v1/traces" };
    assert_eq!(request.uri().path(), expected);
    let traced = request.headers()["traceparent"].to_str().unwrap().ends_with("-01");
    assert!(!traced, "an export is no part of a trace");
    let body = request.into_body().collect().await?.to_bytes();
    if refuses.load(Ordering::Relaxed) {
        let response = Response::builder().status(if grpc { 200 } else { 503 }).header("grpc-status", "14");
        return Ok(response.header("content-type", "application/grpc").body(Full::default()).unwrap());
    }
    let message = if grpc { body.slice(5..) } else { body };
    let message = ExportTraceServiceRequest::decode(message).unwrap();
    seen.lock().unwrap().extend(read(message));
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    if !grpc {
        return Ok(Response::new(Full::from(answer)));
    }
    let mut framed = vec![0, 0, 0, 0, u8::try_from(answer.len()).unwrap()];
    framed.extend(answer);
    // A response may carry its status in the head as well.
    let response = Response::builder().header("content-type", "application/grpc").header("grpc-status", "0");
    Ok(response.body(Full::from(framed)).unwrap())
}

fn read(message: ExportTraceServiceRequest) -> Vec<Seen> {
    let mut out = Vec::new();
    for resource in message.resource_spans {
        let about = pairs(resource.resource.unwrap().attributes);
        for scope in resource.scope_spans {
            assert_eq!(scope.scope.unwrap().name, "selvage");
            for span in scope.spans {
                assert_eq!(span.flags & 1, 1);
                out.push(Seen {
                    server: span.kind == SpanKind::Server as i32,
                    trace: hex(&span.trace_id),
                    span: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    name: span.name,
                    nanos: span.end_time_unix_nano - span.start_time_unix_nano,
                    attributes: pairs(span.attributes),
                    resource: about.clone(),
                });
            }
        }
    }
    out
}

fn pairs(list: Vec<KeyValue>) -> HashMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|v| v.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    };
    list.into_iter().map(|KeyValue { key, value, .. }| (key, text(value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
