//! What is kept of a call for its line: handles to what the message holds anyway, and only of the headers that some
//! operator names.

use std::{
    io::Write,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use mesh_core::command::{AddressPart, Message, Operator};

use super::super::{flags::Flags, trace::TraceIds};

/// Longest copy of a text that a client chose (path, agent).
const MAX_FIELD: usize = 2048;

/// What is known of one call when it ends.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// When it began.
    pub start: Option<SystemTime>,
    /// The request; none for TCP and UDP.
    pub http: Option<Box<Http>>,
    /// `HTTP/1.1`, `HTTP/2`, `UDP`, or empty for TCP.
    pub protocol: &'static str,
    /// Status that the client saw; 0 when none was sent.
    pub status: u16,
    /// Status of a gRPC call.
    pub grpc_status: Option<u16>,
    /// Why it ended so.
    pub flags: Flags,
    /// Envoy's response code details.
    pub details: &'static str,
    /// Body bytes from the client.
    pub received: u64,
    /// Body bytes to the client.
    pub sent: u64,
    /// How long it took.
    pub duration: Duration,
    /// Time until the upstream's response head.
    pub upstream_time: Option<Duration>,
    /// Tries that reached an endpoint.
    pub attempts: u32,
    /// Endpoint that was reached.
    pub upstream: Option<SocketAddr>,
    /// `outbound|port|subset|host`.
    pub cluster: String,
    /// What the client called.
    pub destination: Option<SocketAddr>,
    /// Who called.
    pub client: Option<SocketAddr>,
    /// The calling node or workload as its certificate says, where there was one.
    pub peer: String,
    /// SNI of a TLS connection.
    pub server_name: String,
    /// Name of the rule.
    pub route: String,
    /// The trace that the call belongs to.
    pub trace: Option<TraceIds>,
}

/// What is kept of a request and its response.
#[derive(Debug, Clone)]
pub struct Http {
    /// The method.
    pub method: Method,
    /// As the client sent it.
    pub uri: Uri,
    /// Values of [`Wanted::request`], in its order.
    request: Vec<Option<HeaderValue>>,
    response: Vec<Option<HeaderValue>>,
    trailers: Vec<Option<HeaderValue>>,
}

/// The headers that lines need.
#[derive(Debug)]
pub(in crate::telemetry) struct Wanted {
    request: Vec<HeaderName>,
    response: Vec<HeaderName>,
    trailers: Vec<HeaderName>,
}

/// Places in [`Wanted::request`] that filters ask for.
const HOST: usize = 0;
const AGENT: usize = 1;
const REQUEST_ID: usize = 2;

impl Wanted {
    /// What these operators ask for.
    pub(in crate::telemetry) fn by<'a>(operators: impl Iterator<Item = &'a Operator>) -> Self {
        let mut wanted = Self {
            request: vec![header::HOST, header::USER_AGENT, HeaderName::from_static("x-request-id")],
            response: Vec::new(),
            trailers: Vec::new(),
        };
        for operator in operators {
            let Operator::Header { message, name, or, .. } = operator else { continue };
            for name in std::iter::once(name).chain(or) {
                // Pseudo headers are no names; they are kept anyway.
                let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
                let list = match message {
                    Message::Request => &mut wanted.request,
                    Message::Response => &mut wanted.response,
                    Message::Trailers => &mut wanted.trailers,
                };
                if !list.contains(&name) {
                    list.push(name);
                }
            }
        }
        wanted
    }
}

fn keep(headers: &HeaderMap, names: &[HeaderName]) -> Vec<Option<HeaderValue>> {
    names.iter().map(|n| headers.get(n).cloned()).collect()
}

impl Http {
    pub(in crate::telemetry) fn of<B>(request: &Request<B>, wanted: &Wanted) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            request: keep(request.headers(), &wanted.request),
            response: Vec::new(),
            trailers: Vec::new(),
        }
    }

    pub(in crate::telemetry) fn see_response(&mut self, headers: &HeaderMap, wanted: &Wanted) {
        self.response = keep(headers, &wanted.response);
    }

    pub(in crate::telemetry) fn see_trailers(&mut self, headers: &HeaderMap, wanted: &Wanted) {
        self.trailers = keep(headers, &wanted.trailers);
    }

    /// Path and query as the client sent them.
    pub fn path(&self) -> &str {
        self.uri.path_and_query().map_or("/", |p| p.as_str())
    }

    fn known(&self, at: usize) -> &str {
        self.request.get(at).and_then(Option::as_ref).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// The host that was asked for.
    pub fn authority(&self) -> &str {
        self.uri.authority().map_or_else(|| self.known(HOST), |a| a.as_str())
    }

    /// Header `user-agent`.
    pub fn agent(&self) -> &str {
        self.known(AGENT)
    }

    /// Header `x-request-id`.
    pub fn request_id(&self) -> &str {
        self.known(REQUEST_ID)
    }
}

/// What operators say of the host that the proxy runs on.
#[derive(Debug, Default)]
pub(in crate::telemetry) struct Host {
    name: String,
    /// Variables of the environment that some operator names.
    environment: Vec<(Box<str>, Option<String>)>,
}

impl Host {
    /// With the variables that these operators name.
    pub(in crate::telemetry) fn named_by<'a>(
        mut self,
        operators: impl Iterator<Item = &'a Operator>,
    ) -> Self {
        self.environment.extend(operators.filter_map(|o| match o {
            Operator::Environment(name) => Some((name.clone(), None)),
            _ => None,
        }));
        self
    }

    /// Looks all of it up.
    pub(in crate::telemetry) fn look(&mut self) {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim().clone_into(&mut self.name);
        for (name, value) in &mut self.environment {
            *value = std::env::var(&**name).ok();
        }
    }
}

/// An entry as the operators of a program look at it.
pub(in crate::telemetry) struct View<'a> {
    pub(in crate::telemetry) entry: &'a Entry,
    pub(in crate::telemetry) wanted: &'a Wanted,
    pub(in crate::telemetry) host: &'a Host,
    /// Texts of clients lose what could forge a line; JSON escapes it instead.
    pub(in crate::telemetry) plain: bool,
}

impl View<'_> {
    /// A client's text, cut, and in a plain line with nothing that could forge one.
    fn foreign(&self, text: &[u8], out: &mut Vec<u8>) -> bool {
        if text.is_empty() {
            return false;
        }
        let text = &text[..text.len().min(MAX_FIELD)];
        if self.plain {
            out.extend(text.iter().map(|b| match b {
                b'"' => b'\'',
                b if b.is_ascii_control() => b'?',
                b => *b,
            }));
        } else {
            out.extend_from_slice(text);
        }
        true
    }

    fn header(&self, message: Message, name: &str, without_query: bool, out: &mut Vec<u8>) -> bool {
        let Some(http) = &self.entry.http else { return false };
        let (names, values) = match message {
            Message::Request => (&self.wanted.request, &http.request),
            Message::Response => (&self.wanted.response, &http.response),
            Message::Trailers => (&self.wanted.trailers, &http.trailers),
        };
        let text = match (message, name) {
            (Message::Request, ":method") => http.method.as_str().as_bytes(),
            (Message::Request, ":path") => http.path().as_bytes(),
            (Message::Request, ":authority" | "host") => http.authority().as_bytes(),
            (Message::Request, ":scheme") => http.uri.scheme_str().unwrap_or("http").as_bytes(),
            // Envoy writes it into the response; here it is measured.
            (Message::Response, "x-envoy-upstream-service-time") => {
                return milliseconds(self.entry.upstream_time, out);
            }
            (Message::Response, ":status") => return number(self.entry.status, out),
            _ => {
                let at = names.iter().position(|n| n.as_str() == name);
                at.and_then(|at| values.get(at)?.as_ref()).map(HeaderValue::as_bytes).unwrap_or_default()
            }
        };
        let end = if without_query { text.iter().position(|b| *b == b'?') } else { None };
        self.foreign(&text[..end.unwrap_or(text.len())], out)
    }

    fn query(&self, name: &str, out: &mut Vec<u8>) -> bool {
        let query = self.entry.http.as_ref().and_then(|h| h.uri.query()).unwrap_or_default();
        let value = query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='));
        value.is_some_and(|v| self.foreign(v.as_bytes(), out))
    }
}

impl mesh_core::command::Values for View<'_> {
    fn write(&self, operator: &Operator, out: &mut Vec<u8>) -> bool {
        let e = self.entry;
        match operator {
            Operator::StartTime(form) => time(e.start, Duration::ZERO, form, out),
            Operator::EmitTime(form) => time(e.start, e.duration, form, out),
            Operator::Header { message, name, or, without_query } => {
                self.header(*message, name, *without_query, out)
                    || or.as_ref().is_some_and(|or| self.header(*message, or, *without_query, out))
            }
            Operator::QueryParameter(name) => self.query(name, out),
            Operator::Protocol => text(e.protocol, out),
            Operator::ResponseCode => number(e.status, out),
            Operator::ResponseCodeDetails => text(e.details, out),
            Operator::ResponseFlags => {
                e.flags.write_letters(out);
                true
            }
            Operator::ResponseFlagsLong => {
                e.flags.write_names(out);
                true
            }
            Operator::ConnectionTerminationDetails if e.http.is_none() => text(e.details, out),
            Operator::UpstreamFailure if e.flags.has(Flags::CONNECT_FAILURE) => text(e.details, out),
            Operator::GrpcStatus { number: true } => e.grpc_status.is_some_and(|s| number(s, out)),
            Operator::GrpcStatus { number: false } => {
                e.grpc_status.is_some_and(|s| match GRPC.get(usize::from(s)) {
                    Some(name) => text(name, out),
                    None => number(s, out),
                })
            }
            Operator::BytesReceived => number(e.received, out),
            Operator::BytesSent => number(e.sent, out),
            Operator::Duration => milliseconds(Some(e.duration), out),
            Operator::ResponseDuration => milliseconds(e.upstream_time, out),
            Operator::ResponseTxDuration => {
                milliseconds(e.upstream_time.map(|t| e.duration.saturating_sub(t)), out)
            }
            Operator::UpstreamAttempts => number(e.attempts, out),
            Operator::UpstreamCluster => text(&e.cluster, out),
            Operator::UpstreamHost(part) => address(e.upstream, *part, out),
            Operator::DownstreamLocalAddress(part) => address(e.destination, *part, out),
            Operator::DownstreamRemoteAddress(part) => address(e.client, *part, out),
            Operator::Certificate(mesh_core::command::Subject::PeerUri) => text(&e.peer, out),
            Operator::RequestedServerName => self.foreign(e.server_name.as_bytes(), out),
            Operator::RouteName => text(&e.route, out),
            Operator::TraceId => e.trace.is_some_and(|t| write!(out, "{:032x}", t.trace).is_ok()),
            Operator::SpanId => e.trace.is_some_and(|t| write!(out, "{:016x}", t.span).is_ok()),
            Operator::Hostname => text(&self.host.name, out),
            Operator::Environment(name) => {
                let found = self.host.environment.iter().find(|(n, _)| n == name);
                found.is_some_and(|(_, value)| text(value.as_deref().unwrap_or_default(), out))
            }
            Operator::ConnectionTerminationDetails
            | Operator::UpstreamFailure
            | Operator::UpstreamProtocol
            | Operator::UpstreamLocalAddress(_)
            | Operator::RequestDuration
            | Operator::Certificate(_)
            | Operator::Unavailable(_) => false,
        }
    }
}

/// Names of gRPC's statuses.
const GRPC: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

fn text(value: &str, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(value.as_bytes());
    !value.is_empty()
}

fn number(value: impl std::fmt::Display, out: &mut Vec<u8>) -> bool {
    // Writing to a Vec cannot fail.
    write!(out, "{value}").is_ok()
}

fn milliseconds(value: Option<Duration>, out: &mut Vec<u8>) -> bool {
    value.is_some_and(|v| number(v.as_millis(), out))
}

fn address(value: Option<SocketAddr>, part: AddressPart, out: &mut Vec<u8>) -> bool {
    value.is_some_and(|a| match part {
        AddressPart::Whole => number(a, out),
        AddressPart::Ip => number(a.ip(), out),
        AddressPart::Port => number(a.port(), out),
    })
}

fn time(
    start: Option<SystemTime>,
    after: Duration,
    form: &mesh_core::command::TimeFormat,
    out: &mut Vec<u8>,
) -> bool {
    let since = start.and_then(|t| (t + after).duration_since(SystemTime::UNIX_EPOCH).ok());
    since.is_some_and(|t| {
        form.write(t.as_secs(), t.subsec_nanos(), out);
        true
    })
}
