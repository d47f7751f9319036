//! Compiled rules of a host. A rule's position in its VirtualService stays known, so that every decision can be
//! explained.

pub(crate) mod compile;
mod explain;
pub(crate) mod index;
mod matching;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;
use regex::Regex;

use crate::{
    client::Client,
    command::{Format, Message, Operator},
    retry::RetryPolicy,
    strings::StringMatcher,
};

/// One VirtualService as it applies to one host.
#[derive(Debug)]
pub struct VirtualHostEntry {
    /// `namespace/name`
    pub source: Arc<str>,
    visible_to: Box<[Box<str>]>,
    gateways: Box<[Box<str>]>,
    /// HTTP rules, in order.
    pub http: Box<[HttpRule]>,
    /// TLS rules, in order.
    pub tls: Box<[TlsRule]>,
    /// TCP rules, in order.
    pub tcp: Box<[TcpRule]>,
    index: index::Index,
}

/// One HTTP rule.
#[derive(Debug)]
pub struct HttpRule {
    /// Position in the VirtualService.
    pub index: u32,
    /// Name; may be empty.
    pub name: Box<str>,
    /// Any of them; empty = all requests.
    pub matches: Box<[RouteMatch]>,
    /// What happens.
    pub action: Action,
    /// Change of path and authority.
    pub rewrite: Option<Rewrite>,
    /// Limit for the whole exchange.
    pub timeout: Option<Duration>,
    /// None = the mesh's default.
    pub retry: Option<RetryPolicy>,
    /// Injected delay.
    pub delay: Option<FaultDelay>,
    /// Injected failure.
    pub abort: Option<FaultAbort>,
    /// Header changes of the rule.
    pub headers: HeaderOps,
    /// Copies of the request.
    pub mirrors: Box<[Mirror]>,
    /// Cross-origin rules.
    pub cors: Option<Cors>,
    /// The answer when the destination that was chosen does not exist.
    pub missing_status: u16,
}

/// The conditions of one match entry: all of them.
#[derive(Debug)]
pub struct RouteMatch {
    /// Name; may be empty.
    pub name: Box<str>,
    /// Name for statistics; may be empty.
    pub stat_prefix: Arc<str>,
    /// Path without query.
    pub uri: Option<StringMatcher>,
    /// Case of the path does not matter (exact and prefix only).
    pub ignore_uri_case: bool,
    pub(crate) scheme: Option<StringMatcher>,
    pub(crate) method: Option<StringMatcher>,
    pub(crate) authority: Option<StringMatcher>,
    pub(crate) headers: Box<[(Box<str>, StringMatcher)]>,
    pub(crate) without_headers: Box<[(Box<str>, StringMatcher)]>,
    pub(crate) query_params: Box<[(Box<str>, StringMatcher)]>,
    pub(crate) selector: Selector,
}

/// Conditions that a client and a port fulfil or not, whatever the request is.
#[derive(Debug, Default)]
pub(crate) struct Selector {
    pub(crate) port: u16,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) namespace: Box<str>,
    pub(crate) gateways: Box<[Box<str>]>,
}

impl Selector {
    fn source_fits(&self, client: &Client<'_>) -> bool {
        (self.namespace.is_empty() || *self.namespace == *client.namespace)
            && self.labels.iter().all(|(k, v)| client.labels.get(k) == Some(v))
    }

    /// HTTP: a list of gateways replaces the VirtualService's, and then the source is not looked at.
    pub(crate) fn fits_http(&self, client: &Client<'_>, port: u16, bound: bool) -> bool {
        let gateway = if self.gateways.is_empty() {
            bound && self.source_fits(client)
        } else {
            self.gateways.iter().any(|g| **g == *client.gateway_name())
        };
        gateway && (self.port == 0 || self.port == port)
    }

    /// TCP and TLS: all conditions count.
    pub(crate) fn fits_l4(&self, client: &Client<'_>, port: u16, bound: bool) -> bool {
        let gateway = if self.gateways.is_empty() {
            bound
        } else {
            self.gateways.iter().any(|g| **g == *client.gateway_name())
        };
        gateway && (self.port == 0 || self.port == port) && self.source_fits(client)
    }
}

/// What a rule does.
#[derive(Debug)]
pub enum Action {
    /// Sends the request on.
    Forward(Destinations),
    /// Answers with another address.
    Redirect(Redirect),
    /// Answers by itself.
    Direct(DirectResponse),
}

/// Where requests go, by weight.
#[derive(Debug)]
pub struct Destinations {
    /// As written; a weight of 0 is never chosen unless it is the only entry.
    pub all: Box<[WeightedDestination]>,
    pub(crate) total: u64,
}

/// One destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedDestination {
    /// Host.
    pub host: Arc<str>,
    /// Subset; empty = none.
    pub subset: Arc<str>,
    /// Port; 0 = by the rules for an omitted one.
    pub port: u16,
    /// Weight.
    pub weight: u32,
    /// Header changes for requests that go here.
    pub headers: HeaderOps,
}

/// Where a redirect leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Replaces the whole path.
    pub uri: Option<Box<str>>,
    /// Replaces the matched prefix.
    pub prefix_rewrite: Option<Box<str>>,
    /// Replaces the host.
    pub authority: Option<Box<str>>,
    /// Port of the new address.
    pub port: RedirectPort,
    /// Replaces the scheme.
    pub scheme: Option<Box<str>>,
    /// Status.
    pub code: u16,
}

/// Port of a redirect's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectPort {
    /// The one in the request's host.
    Keep,
    /// That one.
    Number(u16),
    /// The port that the client called.
    FromRequest,
    /// None.
    ProtocolDefault,
}

/// An answer without an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponse {
    /// Status.
    pub status: u16,
    /// Body.
    pub body: Arc<[u8]>,
}

/// Change of path and authority.
#[derive(Debug)]
pub struct Rewrite {
    /// Replaces what the uri condition matched.
    pub uri: Option<Box<str>>,
    /// Replaces the authority.
    pub authority: Option<Box<str>>,
    /// Replaces all matches in the path; the replacement has `$n` groups.
    pub regex: Option<(Regex, Box<str>)>,
}

/// Injected delay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultDelay {
    /// Share of requests, in millionths.
    pub parts_per_million: u32,
    /// How long.
    pub fixed: Duration,
}

/// Injected failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultAbort {
    /// Share of requests, in millionths.
    pub parts_per_million: u32,
    /// Status for HTTP.
    pub http_status: u16,
    /// `grpc-status`, if the rule names one.
    pub grpc_status: Option<u32>,
}

/// Header changes, on the way there and back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderOps {
    /// Of the request.
    pub request: HeaderOp,
    /// Of the response.
    pub response: HeaderOp,
}

/// Header changes in one direction: removals first, then set, then add. Names are lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderOp {
    /// Overwritten.
    pub set: Box<[(Box<str>, HeaderText)]>,
    /// Appended.
    pub add: Box<[(Box<str>, HeaderText)]>,
    /// Removed.
    pub remove: Box<[Box<str>]>,
    /// A new authority (`host` or `:authority` among set or add).
    pub authority: Option<Box<str>>,
}

/// The value that a header gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderText {
    /// As it stands.
    Plain(Box<str>),
    /// With operators (`%REQ(x-a)%`) that the request answers, and as it was written.
    Made(Box<(Format, Box<str>)>),
}

impl HeaderText {
    /// A doubled percent sign stands for one. What is no known operator stays as it stands.
    pub(crate) fn compile(text: &str) -> Self {
        if !text.contains('%') {
            return Self::Plain(text.into());
        }
        match Format::parse(text) {
            Ok(format) if format.operators().all(has_value) => match format.constant() {
                Some(text) => Self::Plain(text.into()),
                None => Self::Made(Box::new((format, text.into()))),
            },
            _ => Self::Plain(text.replace("%%", "%").into()),
        }
    }

    /// The value, or the text that makes it.
    pub fn text(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Made(made) => &made.1,
        }
    }
}

/// Whether an operator has a value while headers are set.
const fn has_value(operator: &Operator) -> bool {
    matches!(
        operator,
        Operator::StartTime(_)
            | Operator::Header { message: Message::Request | Message::Response, .. }
            | Operator::Protocol
            | Operator::ResponseCode
            | Operator::RouteName
            | Operator::UpstreamCluster
            | Operator::UpstreamHost(_)
            | Operator::DownstreamLocalAddress(_)
            | Operator::DownstreamRemoteAddress(_)
    )
}

impl HeaderOp {
    /// Texts with operators.
    pub fn made(&self) -> impl Iterator<Item = &Format> {
        self.set.iter().chain(&self.add).filter_map(|(_, text)| match text {
            HeaderText::Plain(_) => None,
            HeaderText::Made(made) => Some(&made.0),
        })
    }
}

/// A copy of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Where to.
    pub destination: WeightedDestination,
    /// Share of requests, in millionths.
    pub parts_per_million: u32,
}

/// Cross-origin rules.
#[derive(Debug)]
pub struct Cors {
    /// Origins that are allowed; `*` exact allows all.
    pub allow_origins: Box<[StringMatcher]>,
    /// Joined by commas; empty = no header.
    pub allow_methods: Box<str>,
    /// Joined by commas; empty = no header.
    pub allow_headers: Box<str>,
    /// Joined by commas; empty = no header.
    pub expose_headers: Box<str>,
    /// Seconds.
    pub max_age: Option<u64>,
    /// Say `true` in allow-credentials.
    pub allow_credentials: bool,
    /// Answer a preflight from another origin here.
    pub ignore_unmatched_preflights: bool,
}

/// One TLS rule.
#[derive(Debug)]
pub struct TlsRule {
    /// Position in the VirtualService.
    pub index: u32,
    pub(crate) matches: Box<[TlsMatch]>,
    /// Where connections go.
    pub destinations: Destinations,
}

#[derive(Debug)]
pub(crate) struct TlsMatch {
    /// Lower case; a leading `*` stands for any first labels.
    pub(crate) sni: Box<[Box<str>]>,
    pub(crate) subnets: Box<[IpNet]>,
    pub(crate) selector: Selector,
}

/// One TCP rule.
#[derive(Debug)]
pub struct TcpRule {
    /// Position in the VirtualService.
    pub index: u32,
    pub(crate) matches: Box<[TcpMatch]>,
    /// Where connections go.
    pub destinations: Destinations,
}

#[derive(Debug)]
pub(crate) struct TcpMatch {
    pub(crate) subnets: Box<[IpNet]>,
    pub(crate) selector: Selector,
}
