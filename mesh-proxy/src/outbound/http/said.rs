//! What a request and its response say where a rule makes a header of it (`%REQ(x-a)%`).

use std::{
    borrow::Cow,
    io::Write,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderValue, Request};
use mesh_core::{
    Cluster, HttpDecision,
    actions::header_ops,
    command::{AddressPart, Format, Message, Operator, Values},
    route::{HeaderOp, HeaderText, WeightedDestination},
};

use super::{HttpConnection, Version, view};
use crate::outbound::cluster_name;

/// A call as both of its messages look at it.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) conn: &'a HttpConnection,
    pub(crate) decision: &'a HttpDecision<'a>,
    pub(crate) start: Instant,
    pub(crate) cluster: Option<&'a Cluster>,
}

/// What the response's headers want to know of the request, kept while it is away. Mostly nothing.
#[derive(Debug, Default)]
pub(crate) struct Kept(Vec<(Box<str>, HeaderValue)>);

/// A message while its headers are made.
pub(crate) enum Seen<'a> {
    Request { map: &'a HeaderMap, method: &'a str, path: &'a str, authority: &'a str },
    Response { map: &'a HeaderMap, status: u16, upstream: Option<SocketAddr>, kept: &'a Kept },
}

impl Kept {
    /// The request's headers that the response's are made of.
    pub(crate) fn of<B>(
        request: &Request<B>,
        decision: &HttpDecision<'_>,
        to: Option<&WeightedDestination>,
    ) -> Self {
        let mut kept = Self::default();
        for op in header_ops(decision, to, true).into_iter().flatten() {
            for operator in op.made().flat_map(Format::operators) {
                let Operator::Header { message: Message::Request, name, or, .. } = operator else { continue };
                for name in std::iter::once(name).chain(or) {
                    if let Some(value) = header_of(request, name)
                        && !kept.0.iter().any(|(n, _)| n == name)
                    {
                        kept.0.push((name.clone(), value));
                    }
                }
            }
        }
        kept
    }
}

fn header_of<B>(request: &Request<B>, name: &str) -> Option<HeaderValue> {
    let text = match name {
        ":method" => request.method().as_str(),
        ":path" => request.uri().path_and_query().map_or("/", |p| p.as_str()),
        ":authority" | "host" => view::authority(request.uri(), request.headers()),
        _ => return request.headers().get(name).cloned(),
    };
    HeaderValue::from_str(text).ok()
}

/// The value of a header; none: nothing is there to be said, and the header stays away.
pub(crate) fn value<'v>(text: &'v HeaderText, call: Call<'_>, seen: &Seen<'_>) -> Option<Cow<'v, [u8]>> {
    match text {
        HeaderText::Plain(text) => Some(Cow::Borrowed(text.as_bytes())),
        HeaderText::Made(made) => {
            let mut out = Vec::new();
            made.0.write(&Said { call, seen }, "", &mut out);
            (!out.is_empty()).then_some(Cow::Owned(out))
        }
    }
}

struct Said<'a> {
    call: Call<'a>,
    seen: &'a Seen<'a>,
}

impl Said<'_> {
    fn header(&self, message: Message, name: &str, without_query: bool, out: &mut Vec<u8>) -> bool {
        let mut text = match (message, self.seen) {
            (Message::Request, Seen::Request { method, .. }) if name == ":method" => method.as_bytes(),
            (Message::Request, Seen::Request { path, .. }) if name == ":path" => path.as_bytes(),
            (Message::Request, Seen::Request { authority, .. }) if matches!(name, ":authority" | "host") => {
                authority.as_bytes()
            }
            (Message::Request, Seen::Request { map, .. })
            | (Message::Response, Seen::Response { map, .. }) => {
                map.get(name).map(HeaderValue::as_bytes).unwrap_or_default()
            }
            (Message::Request, Seen::Response { kept, .. }) => {
                let found = kept.0.iter().find(|(n, _)| **n == *name);
                found.map(|(_, v)| v.as_bytes()).unwrap_or_default()
            }
            _ => &[],
        };
        if without_query {
            text = text.split(|b| *b == b'?').next().unwrap_or_default();
        }
        out.extend_from_slice(text);
        !text.is_empty()
    }
}

impl Values for Said<'_> {
    fn write(&self, operator: &Operator, out: &mut Vec<u8>) -> bool {
        let connection = &self.call.conn.connection;
        let (status, upstream) = match self.seen {
            Seen::Request { .. } => (None, None),
            Seen::Response { status, upstream, .. } => (Some(*status), *upstream),
        };
        match operator {
            Operator::Header { message, name, or, without_query } => {
                self.header(*message, name, *without_query, out)
                    || or.as_ref().is_some_and(|or| self.header(*message, or, *without_query, out))
            }
            Operator::StartTime(form) => {
                let start = SystemTime::now() - self.call.start.elapsed();
                let since = start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
                form.write(since.as_secs(), since.subsec_nanos(), out);
                true
            }
            Operator::Protocol => text(
                match self.call.conn.version {
                    Version::Http1 => "HTTP/1.1",
                    Version::Http2 => "HTTP/2",
                },
                out,
            ),
            Operator::ResponseCode => status.is_some_and(|s| write!(out, "{s}").is_ok()),
            Operator::RouteName => text(self.call.decision.rule.map_or("", |r| &r.name), out),
            Operator::UpstreamCluster => self.call.cluster.is_some_and(|c| text(&cluster_name(c), out)),
            Operator::UpstreamHost(part) => address(upstream, *part, out),
            Operator::DownstreamLocalAddress(part) => address(connection.target.addr, *part, out),
            Operator::DownstreamRemoteAddress(part) => address(Some(connection.client), *part, out),
            _ => false,
        }
    }
}

fn text(value: &str, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(value.as_bytes());
    !value.is_empty()
}

fn address(value: Option<SocketAddr>, part: AddressPart, out: &mut Vec<u8>) -> bool {
    value.is_some_and(|a| match part {
        AddressPart::Whole => write!(out, "{a}").is_ok(),
        AddressPart::Ip => write!(out, "{}", a.ip()).is_ok(),
        AddressPart::Port => write!(out, "{}", a.port()).is_ok(),
    })
}

/// Whether any header of these levels is made of what the call says.
pub(crate) fn any_made(levels: [Option<&HeaderOp>; 2]) -> bool {
    levels.into_iter().flatten().any(|op| op.made().next().is_some())
}
