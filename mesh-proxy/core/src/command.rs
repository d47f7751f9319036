//! Envoy's command operators (`%REQ(X-REQUEST-ID)%`), compiled: what a text with operators says about a call.
//!
//! For whoever lets users write such texts: lines of the access log, tags of spans, values of headers. A text is parsed
//! once, when it is configured; an operator that nobody knows is an error that names it. Writing one allocates nothing
//! but what the output needs. What an operator's value is, is said by [`Values`]; this module opens nothing and reads
//! no clock.
//!
//! ```
//! use mesh_core::command::{Format, Operator, Values};
//!
//! struct Call;
//! impl Values for Call {
//!     fn write(&self, operator: &Operator, out: &mut Vec<u8>) -> bool {
//!         match operator {
//!             Operator::ResponseCode => out.extend_from_slice(b"200"),
//!             _ => return false,
//!         }
//!         true
//!     }
//! }
//!
//! let format = Format::parse("code=%RESPONSE_CODE% route=%ROUTE_NAME% 100%%").unwrap();
//! assert_eq!(format.text(&Call, "-"), "code=200 route=- 100%");
//! ```

mod parse;
mod time;

pub use parse::BadFormat;
pub use time::{BadTime, TimeFormat};

/// Longest text.
pub const MAX_LENGTH: usize = 8192;
/// Most operators of one text.
pub const MAX_COMMANDS: usize = 128;

/// The line that Istio configures Envoy with.
pub const ISTIO_TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
\"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%";

/// The keys and texts of Istio's JSON log, in the order in which they are written.
pub const ISTIO_JSON: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("route_name", "%ROUTE_NAME%"),
];

/// A text with operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format(Vec<Part>);

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// As it stands.
    Text(Box<str>),
    /// What the call says.
    Command(Command),
}

/// An operator and how much of its value is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What.
    pub operator: Operator,
    /// Most bytes of it: `%REQ(X):20%`.
    pub max: Option<usize>,
}

/// Headers of which message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Message {
    /// `REQ`.
    Request,
    /// `RESP`.
    Response,
    /// `TRAILER`.
    Trailers,
}

/// What of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressPart {
    /// `10.0.0.1:80`.
    Whole,
    /// `10.0.0.1`.
    Ip,
    /// `80`.
    Port,
}

/// Which certificate of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The client's SPIFFE identity or other URI.
    PeerUri,
    /// The proxy's own.
    LocalUri,
    /// The distinguished name of the client's certificate.
    PeerSubject,
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the operator of that name")]
pub enum Operator {
    StartTime(TimeFormat),
    EmitTime(TimeFormat),
    /// `REQ(A?B)`, `RESP(A?B)`, `TRAILER(A?B)`; names in lower case, pseudo headers with their colon.
    Header {
        message: Message,
        name: Box<str>,
        or: Option<Box<str>>,
        /// `REQ_WITHOUT_QUERY`.
        without_query: bool,
    },
    QueryParameter(Box<str>),
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseCodeDetails,
    ResponseFlags,
    ResponseFlagsLong,
    ConnectionTerminationDetails,
    UpstreamFailure,
    /// The status as a name (`NotFound`) or a number.
    GrpcStatus {
        number: bool,
    },
    BytesReceived,
    BytesSent,
    Duration,
    /// Until the request was read whole.
    RequestDuration,
    /// Until the first byte of the response from upstream.
    ResponseDuration,
    /// From that byte to the last one sent.
    ResponseTxDuration,
    UpstreamAttempts,
    UpstreamCluster,
    UpstreamHost(AddressPart),
    UpstreamLocalAddress(AddressPart),
    DownstreamLocalAddress(AddressPart),
    DownstreamRemoteAddress(AddressPart),
    Certificate(Subject),
    RequestedServerName,
    RouteName,
    TraceId,
    SpanId,
    Hostname,
    /// A variable of the proxy's environment.
    Environment(Box<str>),
    /// One of Envoy's that has no value in this proxy.
    Unavailable(&'static str),
}

/// A call, as operators look at it.
pub trait Values {
    /// Appends the value of an operator. False: there is none, and nothing was appended.
    fn write(&self, operator: &Operator, out: &mut Vec<u8>) -> bool;
}

impl Operator {
    /// Whether its value is a number.
    pub const fn is_number(&self) -> bool {
        matches!(
            self,
            Self::ResponseCode
                | Self::BytesReceived
                | Self::BytesSent
                | Self::Duration
                | Self::RequestDuration
                | Self::ResponseDuration
                | Self::ResponseTxDuration
                | Self::UpstreamAttempts
                | Self::GrpcStatus { number: true }
                | Self::UpstreamHost(AddressPart::Port)
                | Self::UpstreamLocalAddress(AddressPart::Port)
                | Self::DownstreamLocalAddress(AddressPart::Port)
                | Self::DownstreamRemoteAddress(AddressPart::Port)
        )
    }
}

impl Command {
    /// Appends the value, cut to the length that is wanted. False: there is none.
    pub fn write(&self, values: &dyn Values, out: &mut Vec<u8>) -> bool {
        let before = out.len();
        if !values.write(&self.operator, out) {
            out.truncate(before);
            return false;
        }
        if let Some(max) = self.max
            && out.len() - before > max
        {
            out.truncate(before + char_boundary(&out[before..], max));
        }
        true
    }
}

/// The end of the last character that ends at or before `max`.
fn char_boundary(text: &[u8], max: usize) -> usize {
    let continues = |b: u8| b & 0xc0 == 0x80;
    (0..=max).rev().find(|i| text.get(*i).is_none_or(|b| !continues(*b))).unwrap_or(0)
}

impl Format {
    /// Compiles a text.
    pub fn parse(text: &str) -> Result<Self, BadFormat> {
        parse::parse(text).map(Self)
    }

    /// A text without operators, as it stands.
    pub fn plain(text: &str) -> Self {
        Self(if text.is_empty() { Vec::new() } else { vec![Part::Text(text.into())] })
    }

    /// The pieces, in order.
    pub fn parts(&self) -> &[Part] {
        &self.0
    }

    /// The operators, in order.
    pub fn operators(&self) -> impl Iterator<Item = &Operator> {
        self.0.iter().filter_map(|p| match p {
            Part::Text(_) => None,
            Part::Command(c) => Some(&c.operator),
        })
    }

    /// The text, if there is no operator in it.
    pub fn constant(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The operator, if the text is nothing but one.
    pub fn single(&self) -> Option<&Command> {
        match self.0.as_slice() {
            [Part::Command(c)] => Some(c),
            _ => None,
        }
    }

    /// Appends the text; `absent` stands for what has no value.
    pub fn write(&self, values: &dyn Values, absent: &str, out: &mut Vec<u8>) {
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Command(command) => {
                    if !command.write(values, out) {
                        out.extend_from_slice(absent.as_bytes());
                    }
                }
            }
        }
    }

    /// The text by itself.
    pub fn text(&self, values: &dyn Values, absent: &str) -> String {
        let mut out = Vec::new();
        self.write(values, absent, &mut out);
        String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }
}

#[cfg(test)]
mod tests;
