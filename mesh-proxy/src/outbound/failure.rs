//! Every way in which the outbound path refuses or fails a call, and what the client sees of it.
//!
//! One closed enum, one exhaustive match: a new way to fail does not compile until somebody decides its status.

use crate::telemetry::Flags;

/// Why a call was not answered by its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FailureClass {
    /// The request is not well-formed, or could be read in two ways.
    BadRequest,
    /// A method that only a proxy may be asked for.
    MethodRefused,
    /// The host matched, none of its rules did.
    NoRoute,
    /// The host belongs to another server than the one that the handshake named: a new connection reaches it.
    Misdirected,
    /// The destination is outside the mesh, and only the mesh may be called.
    Blackhole,
    /// The rule names a destination that does not exist.
    ClusterNotFound,
    /// The same, for a rule whose author is told so by 500.
    BackendNotFound,
    /// The destination has no endpoint that could be used.
    NoHealthyUpstream,
    /// No connection to the endpoint.
    ConnectFailure,
    /// The endpoint did not answer the connection attempt.
    ConnectTimeout,
    /// The TLS handshake with the endpoint failed.
    TlsFailure,
    /// The endpoint's node refused the call.
    RefusedByOwner,
    /// The endpoint closed the connection before it answered.
    UpstreamClosed,
    /// The endpoint reset the stream.
    UpstreamReset,
    /// The endpoint's answer is not HTTP.
    UpstreamProtocol,
    /// A limit of the destination was reached.
    Overflow,
    /// The route's time is over.
    RouteTimeout,
    /// The time of the last try is over.
    TryTimeout,
    /// A fault rule, with the status that it orders.
    FaultAbort {
        /// HTTP status.
        status: u16,
        /// gRPC status, if the rule names one.
        grpc: Option<u16>,
    },
}

/// What a failure looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appearance {
    /// HTTP status for a client that does not speak gRPC.
    pub(crate) status: u16,
    /// gRPC status for one that does.
    pub(crate) grpc: u16,
    /// Envoy's response flag.
    pub(crate) flags: Flags,
    /// Body, in Envoy's words.
    pub(crate) body: &'static str,
    /// Envoy's response code details; also the label of our own counter.
    pub(crate) details: &'static str,
    /// The connection to the client cannot be used again.
    pub(crate) close: bool,
}

const UNKNOWN: u16 = 2;
const PERMISSION_DENIED: u16 = 7;
const UNIMPLEMENTED: u16 = 12;
const INTERNAL: u16 = 13;
const UNAVAILABLE: u16 = 14;

const CONNECT_FAILURE: &str = "upstream connect error or disconnect/reset before headers. reset reason: remote \
                               connection failure, transport failure reason: delayed connect error: Connection \
                               refused";
const CONNECT_TIMEOUT: &str =
    "upstream connect error or disconnect/reset before headers. reset reason: connection timeout";
const TLS_FAILURE: &str = "upstream connect error or disconnect/reset before headers. reset reason: remote \
                           connection failure, transport failure reason: TLS_error";
const CLOSED: &str =
    "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
const RESET: &str = "upstream connect error or disconnect/reset before headers. reset reason: remote reset";
const OVERFLOW: &str = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
const REFUSED: &str = "upstream connect error or disconnect/reset before headers. reset reason: refused by the \
                       endpoint's node";
const PROTOCOL: &str =
    "upstream connect error or disconnect/reset before headers. reset reason: protocol error";
const TIMEOUT: &str = "upstream request timeout";

impl FailureClass {
    /// What the client sees.
    pub(crate) const fn appearance(self) -> Appearance {
        const fn of(
            status: u16,
            grpc: u16,
            flags: Flags,
            body: &'static str,
            details: &'static str,
        ) -> Appearance {
            Appearance { status, grpc, flags, body, details, close: false }
        }
        match self {
            Self::BadRequest => Appearance {
                close: true,
                ..of(400, INTERNAL, Flags::CLIENT_PROTOCOL, "Bad Request", "http1.codec_error")
            },
            Self::MethodRefused => of(404, UNIMPLEMENTED, Flags::NO_ROUTE, "", "connect_not_allowed"),
            Self::NoRoute => of(404, UNIMPLEMENTED, Flags::NO_ROUTE, "", "route_not_found"),
            Self::Misdirected => of(421, UNAVAILABLE, Flags::NO_ROUTE, "", "misdirected_request"),
            Self::Blackhole => of(502, UNAVAILABLE, Flags::NONE, "", "direct_response"),
            Self::ClusterNotFound => of(503, UNAVAILABLE, Flags::NO_CLUSTER, "", "cluster_not_found"),
            Self::BackendNotFound => of(500, UNAVAILABLE, Flags::NO_CLUSTER, "", "cluster_not_found"),
            Self::NoHealthyUpstream => {
                of(503, UNAVAILABLE, Flags::NO_HEALTHY_UPSTREAM, "no healthy upstream", "no_healthy_upstream")
            }
            Self::ConnectFailure => of(
                503,
                UNAVAILABLE,
                Flags::CONNECT_FAILURE,
                CONNECT_FAILURE,
                "upstream_reset_before_response_started{remote_connection_failure}",
            ),
            Self::ConnectTimeout => of(
                503,
                UNAVAILABLE,
                Flags::CONNECT_FAILURE,
                CONNECT_TIMEOUT,
                "upstream_reset_before_response_started{connection_timeout}",
            ),
            Self::TlsFailure => of(
                503,
                UNAVAILABLE,
                Flags::CONNECT_FAILURE,
                TLS_FAILURE,
                "upstream_reset_before_response_started{tls_failure}",
            ),
            Self::RefusedByOwner => of(
                503,
                PERMISSION_DENIED,
                Flags::REFUSED_BY_OWNER,
                REFUSED,
                "upstream_reset_before_response_started{refused_by_owner}",
            ),
            Self::UpstreamClosed => of(
                503,
                UNAVAILABLE,
                Flags::UPSTREAM_CLOSED,
                CLOSED,
                "upstream_reset_before_response_started{connection_termination}",
            ),
            Self::UpstreamReset => of(
                503,
                UNAVAILABLE,
                Flags::UPSTREAM_RESET,
                RESET,
                "upstream_reset_before_response_started{remote_reset}",
            ),
            Self::UpstreamProtocol => of(
                502,
                UNAVAILABLE,
                Flags::UPSTREAM_PROTOCOL,
                PROTOCOL,
                "upstream_reset_before_response_started{protocol_error}",
            ),
            Self::Overflow => of(
                503,
                UNAVAILABLE,
                Flags::OVERFLOW,
                OVERFLOW,
                "upstream_reset_before_response_started{overflow}",
            ),
            Self::RouteTimeout => {
                of(504, UNAVAILABLE, Flags::UPSTREAM_TIMEOUT, TIMEOUT, "upstream_response_timeout")
            }
            Self::TryTimeout => {
                of(504, UNAVAILABLE, Flags::UPSTREAM_TIMEOUT, TIMEOUT, "upstream_per_try_timeout")
            }
            Self::FaultAbort { status, grpc } => of(
                status,
                match grpc {
                    Some(code) => code,
                    None => from_http(status),
                },
                Flags::FAULT_INJECTED,
                "fault filter abort",
                "fault_filter_abort",
            ),
        }
    }
}

/// The gRPC status that stands for an HTTP status (the gRPC project's table).
const fn from_http(status: u16) -> u16 {
    match status {
        400 => INTERNAL,
        401 => 16,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_envoys() {
        let table = [
            (FailureClass::BadRequest, 400, 13, "DPE"),
            (FailureClass::MethodRefused, 404, 12, "NR"),
            (FailureClass::NoRoute, 404, 12, "NR"),
            (FailureClass::Misdirected, 421, 14, "NR"),
            (FailureClass::Blackhole, 502, 14, "-"),
            (FailureClass::ClusterNotFound, 503, 14, "NC"),
            (FailureClass::BackendNotFound, 500, 14, "NC"),
            (FailureClass::NoHealthyUpstream, 503, 14, "UH"),
            (FailureClass::ConnectFailure, 503, 14, "UF"),
            (FailureClass::ConnectTimeout, 503, 14, "UF"),
            (FailureClass::TlsFailure, 503, 14, "UF"),
            (FailureClass::RefusedByOwner, 503, 7, "UAEX"),
            (FailureClass::UpstreamClosed, 503, 14, "UC"),
            (FailureClass::UpstreamReset, 503, 14, "UR"),
            (FailureClass::UpstreamProtocol, 502, 14, "UPE"),
            (FailureClass::Overflow, 503, 14, "UO"),
            (FailureClass::RouteTimeout, 504, 14, "UT"),
            (FailureClass::TryTimeout, 504, 14, "UT"),
            (FailureClass::FaultAbort { status: 418, grpc: None }, 418, 2, "FI"),
            (FailureClass::FaultAbort { status: 200, grpc: Some(14) }, 200, 14, "FI"),
        ];
        for (class, status, grpc, letters) in table {
            let a = class.appearance();
            assert_eq!((a.status, a.grpc, a.flags.letters().as_str()), (status, grpc, letters), "{class:?}");
            assert!(!a.details.is_empty());
        }
        assert_eq!(FailureClass::RouteTimeout.appearance().body, "upstream request timeout");
        assert_eq!(FailureClass::NoHealthyUpstream.appearance().body, "no healthy upstream");
    }
}
