//! From text to operators. Every operator that Envoy documents is known by name; those that ask for what this proxy
//! does not have are kept as such, so that a line copied from elsewhere is not refused.

use super::{
    AddressPart, Command, MAX_COMMANDS, MAX_LENGTH, Message, Operator, Part, Subject, time::TimeFormat,
};

/// Why a text with operators is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at {at}: {reason}")]
pub struct BadFormat {
    /// Position in the text, in bytes.
    pub at: usize,
    /// What is wrong.
    pub reason: String,
}

fn bad(at: usize, reason: impl Into<String>) -> BadFormat {
    BadFormat { at, reason: reason.into() }
}

/// Operators without an argument.
const PLAIN: [(&str, Operator); 44] = [
    ("PROTOCOL", Operator::Protocol),
    ("UPSTREAM_PROTOCOL", Operator::UpstreamProtocol),
    ("RESPONSE_CODE", Operator::ResponseCode),
    ("RESPONSE_CODE_DETAILS", Operator::ResponseCodeDetails),
    ("RESPONSE_FLAGS", Operator::ResponseFlags),
    ("RESPONSE_FLAGS_LONG", Operator::ResponseFlagsLong),
    ("CONNECTION_TERMINATION_DETAILS", Operator::ConnectionTerminationDetails),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", Operator::UpstreamFailure),
    ("GRPC_STATUS_NUMBER", Operator::GrpcStatus { number: true }),
    ("BYTES_RECEIVED", Operator::BytesReceived),
    ("BYTES_SENT", Operator::BytesSent),
    ("DURATION", Operator::Duration),
    ("REQUEST_DURATION", Operator::RequestDuration),
    ("RESPONSE_DURATION", Operator::ResponseDuration),
    ("RESPONSE_TX_DURATION", Operator::ResponseTxDuration),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", Operator::UpstreamAttempts),
    ("UPSTREAM_CLUSTER", Operator::UpstreamCluster),
    ("UPSTREAM_CLUSTER_RAW", Operator::UpstreamCluster),
    ("UPSTREAM_HOST", Operator::UpstreamHost(AddressPart::Whole)),
    ("UPSTREAM_REMOTE_ADDRESS", Operator::UpstreamHost(AddressPart::Whole)),
    ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Operator::UpstreamHost(AddressPart::Ip)),
    ("UPSTREAM_REMOTE_PORT", Operator::UpstreamHost(AddressPart::Port)),
    ("UPSTREAM_LOCAL_ADDRESS", Operator::UpstreamLocalAddress(AddressPart::Whole)),
    ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Operator::UpstreamLocalAddress(AddressPart::Ip)),
    ("UPSTREAM_LOCAL_PORT", Operator::UpstreamLocalAddress(AddressPart::Port)),
    ("DOWNSTREAM_LOCAL_ADDRESS", Operator::DownstreamLocalAddress(AddressPart::Whole)),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Operator::DownstreamLocalAddress(AddressPart::Ip)),
    ("DOWNSTREAM_LOCAL_PORT", Operator::DownstreamLocalAddress(AddressPart::Port)),
    ("DOWNSTREAM_REMOTE_ADDRESS", Operator::DownstreamRemoteAddress(AddressPart::Whole)),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Operator::DownstreamRemoteAddress(AddressPart::Ip)),
    ("DOWNSTREAM_REMOTE_PORT", Operator::DownstreamRemoteAddress(AddressPart::Port)),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Operator::DownstreamRemoteAddress(AddressPart::Whole)),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", Operator::DownstreamRemoteAddress(AddressPart::Ip)),
    ("DOWNSTREAM_DIRECT_REMOTE_PORT", Operator::DownstreamRemoteAddress(AddressPart::Port)),
    ("DOWNSTREAM_PEER_URI_SAN", Operator::Certificate(Subject::PeerUri)),
    ("DOWNSTREAM_LOCAL_URI_SAN", Operator::Certificate(Subject::LocalUri)),
    ("DOWNSTREAM_PEER_SUBJECT", Operator::Certificate(Subject::PeerSubject)),
    ("REQUESTED_SERVER_NAME", Operator::RequestedServerName),
    ("ROUTE_NAME", Operator::RouteName),
    ("TRACE_ID", Operator::TraceId),
    ("SPAN_ID", Operator::SpanId),
    ("HOSTNAME", Operator::Hostname),
    ("UPSTREAM_HOST_NAME", Operator::UpstreamHost(AddressPart::Whole)),
    ("UPSTREAM_HOST_NAME_WITHOUT_PORT", Operator::UpstreamHost(AddressPart::Ip)),
];

/// What Envoy knows and this proxy has no value for, with or without an argument.
const UNAVAILABLE: [&str; 55] = [
    "ACCESS_LOG_TYPE",
    "BYTES_RETRANSMITTED",
    "CLUSTER_METADATA",
    "COMMON_DURATION",
    "CONNECTION_ID",
    "CUSTOM_FLAGS",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_LOCAL_DNS_SAN",
    "DOWNSTREAM_LOCAL_EMAIL_SAN",
    "DOWNSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_LOCAL_IP_SAN",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_PEER_CERT_V_END",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256",
    "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_PEER_EMAIL_SAN",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_IP_SAN",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "DYNAMIC_METADATA",
    "FILTER_CHAIN_NAME",
    "FILTER_STATE",
    "LOCAL_REPLY_BODY",
    "METADATA",
    "PACKETS_RETRANSMITTED",
    "REQUEST_HEADERS_BYTES",
    "REQUEST_TX_DURATION",
    "RESPONSE_HEADERS_BYTES",
    "RESPONSE_TRAILERS_BYTES",
    "ROUNDTRIP_DURATION",
    "STREAM_ID",
    "UNIQUE_ID",
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_FILTER_STATE",
    "UPSTREAM_METADATA",
    "UPSTREAM_PEER_URI_SAN",
    "UPSTREAM_TLS_CIPHER",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_WIRE_BYTES_SENT",
    "VIRTUAL_CLUSTER_NAME",
];

/// Splits a text into its pieces.
pub(super) fn parse(text: &str) -> Result<Vec<Part>, BadFormat> {
    if text.len() > MAX_LENGTH {
        return Err(bad(MAX_LENGTH, format!("longer than {MAX_LENGTH} bytes")));
    }
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut commands = 0;
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if c != '%' {
            plain.push(c);
            at += c.len_utf8();
            continue;
        }
        if text[at + 1..].starts_with('%') {
            plain.push('%');
            at += 2;
            continue;
        }
        let (command, length) = command(text, at)?;
        commands += 1;
        if commands > MAX_COMMANDS {
            return Err(bad(at, format!("more than {MAX_COMMANDS} operators")));
        }
        if !plain.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut plain).into()));
        }
        parts.push(Part::Command(command));
        at += length;
    }
    if !plain.is_empty() {
        parts.push(Part::Text(plain.into()));
    }
    Ok(parts)
}

/// The operator that begins at a percent sign, and its length with both signs.
fn command(text: &str, at: usize) -> Result<(Command, usize), BadFormat> {
    let body = &text[at + 1..];
    let name_end = body
        .find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .unwrap_or(body.len());
    let name = &body[..name_end];
    if name.is_empty() {
        return Err(bad(at, "a % that begins no operator; write %% for the sign itself"));
    }
    let mut rest = &body[name_end..];
    let mut argument = None;
    if let Some(inner) = rest.strip_prefix('(') {
        // The argument may hold percent signs (a time's form), but no closing parenthesis.
        let end = inner.find(')').ok_or_else(|| bad(at, format!("the ) of %{name}( is missing")))?;
        argument = Some(&inner[..end]);
        rest = &inner[end + 1..];
    }
    let mut max = None;
    if let Some(digits) = rest.strip_prefix(':') {
        let end = digits.find('%').unwrap_or(digits.len());
        let number = digits[..end].parse();
        max = Some(number.map_err(|_| bad(at, format!("the length of %{name} is no number")))?);
        rest = &digits[end..];
    }
    let Some(after) = rest.strip_prefix('%') else {
        return Err(bad(at, format!("the closing % of %{name} is missing")));
    };
    let operator = operator(name, argument).map_err(|reason| bad(at, reason))?;
    Ok((Command { operator, max }, text.len() - at - after.len()))
}

fn operator(name: &str, argument: Option<&str>) -> Result<Operator, String> {
    let needed = || argument.filter(|a| !a.is_empty()).ok_or_else(|| format!("%{name}% needs an argument"));
    let time = || TimeFormat::parse(argument.unwrap_or_default()).map_err(|e| format!("%{name}%: {e}"));
    match name {
        "START_TIME" | "START_TIME_LOCAL" => return Ok(Operator::StartTime(time()?)),
        "EMIT_TIME" | "EMIT_TIME_LOCAL" => return Ok(Operator::EmitTime(time()?)),
        "REQ" => return header(Message::Request, name, needed()?, false),
        "REQ_WITHOUT_QUERY" => return header(Message::Request, name, needed()?, true),
        "RESP" => return header(Message::Response, name, needed()?, false),
        "TRAILER" => return header(Message::Trailers, name, needed()?, false),
        "QUERY_PARAM" => return Ok(Operator::QueryParameter(needed()?.into())),
        "ENVIRONMENT" => return Ok(Operator::Environment(needed()?.into())),
        "GRPC_STATUS" => {
            return match argument.unwrap_or_default() {
                "NUMBER" => Ok(Operator::GrpcStatus { number: true }),
                "" | "CAMEL_STRING" | "SNAKE_STRING" => Ok(Operator::GrpcStatus { number: false }),
                other => Err(format!("%GRPC_STATUS({other})% is none of NUMBER, CAMEL_STRING, SNAKE_STRING")),
            };
        }
        _ => {}
    }
    if let Some(known) = UNAVAILABLE.iter().find(|n| **n == name) {
        return Ok(Operator::Unavailable(known));
    }
    match PLAIN.iter().find(|(n, _)| *n == name) {
        Some(_) if argument.is_some() => Err(format!("%{name}% takes no argument")),
        Some((_, operator)) => Ok(operator.clone()),
        None => Err(format!("%{name}% is no known operator")),
    }
}

fn header(message: Message, name: &str, argument: &str, without_query: bool) -> Result<Operator, String> {
    let one = |text: &str| -> Result<Box<str>, String> {
        let plain = text.strip_prefix(':').unwrap_or(text);
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if plain.is_empty() || !plain.bytes().all(token) {
            return Err(format!("%{name}({argument})%: {text:?} is no name of a header"));
        }
        Ok(text.to_ascii_lowercase().into())
    };
    let (first, or) = match argument.split_once('?') {
        Some((first, or)) => (one(first)?, Some(one(or)?)),
        None => (one(argument)?, None),
    };
    Ok(Operator::Header { message, name: first, or, without_query })
}
