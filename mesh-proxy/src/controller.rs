//! Calls to the controller: gRPC over TLS in which both sides are known by SPIFFE identity. A caller without a
//! certificate (a node that joins) trusts the CA whose hash its token carries.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hyper_util::rt::TokioIo;
use mesh_api::model::{JoinRequest, JoinResponse, ReportRequest, ReportResponse};
use mesh_net::tls;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint, Uri},
};
use tonic_prost::ProstCodec;

/// How long a connection, with its handshake, may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a call that is not a stream may take.
const CALL: Duration = Duration::from_secs(20);
/// A connection on which nothing is heard for this long is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Largest message: a response holds about a megabyte, or one larger resource.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;
/// HTTP/2.
pub const ALPN: &[&[u8]] = &[b"h2"];

/// Why the controller cannot be called.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection.
    #[error("connect to controller {address}: {source}")]
    Connect {
        /// Which one.
        address: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// Not an address.
    #[error("controller address {address:?}: {source}")]
    Address {
        /// As configured.
        address: String,
        /// What is wrong.
        source: tonic::transport::Error,
    },
    /// The call failed or was refused.
    #[error("{call}: {} ({:?})", status.message(), status.code())]
    Refused {
        /// Which call.
        call: &'static str,
        /// The answer.
        status: Box<tonic::Status>,
    },
}

impl CallError {
    /// Whether the controller answered that it will not do this, rather than that it cannot now.
    pub fn is_refusal(&self) -> bool {
        use tonic::Code;
        match self {
            Self::Refused { status, .. } => {
                matches!(
                    status.code(),
                    Code::PermissionDenied | Code::Unauthenticated | Code::FailedPrecondition
                )
            }
            Self::Connect { .. } | Self::Address { .. } => false,
        }
    }

    /// Whether the controller's certificate is of no CA that this node trusts.
    pub fn is_of_unknown_ca(&self) -> bool {
        match self {
            Self::Connect { source, .. } => is_of_unknown_ca(source),
            Self::Address { .. } | Self::Refused { .. } => false,
        }
    }
}

/// Whether somewhere below an error is a certificate that no trusted CA has signed.
pub(crate) fn is_of_unknown_ca(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::{CertificateError as Bad, Error::InvalidCertificate};
    let mut next = Some(error);
    while let Some(error) = next {
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = error.downcast_ref().or_else(|| wrapped?.downcast_ref::<rustls::Error>());
        if let Some(InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) = tls {
            return true;
        }
        next = error.source();
    }
    false
}

/// Connects to one controller.
pub async fn connect(address: &str, tls: Arc<ClientConfig>) -> Result<Channel, CallError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|source| CallError::Address { address: address.to_owned(), source })?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let connector = tower::service_fn(move |uri: Uri| {
        let tls = tls.clone();
        async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let dial = async {
                let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(15012))).await?;
                stream.set_nodelay(true)?;
                tls::connect(&tls, stream).await
            };
            match tokio::time::timeout(CONNECT, dial).await {
                Ok(stream) => stream.map(TokioIo::new),
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
            }
        }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|source| CallError::Connect { address: address.to_owned(), source })
}

/// A stub on a connection.
pub(crate) fn stub(channel: Channel) -> Grpc<Channel> {
    Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
}

/// Asks for a certificate.
pub async fn join(channel: Channel, request: JoinRequest) -> Result<JoinResponse, CallError> {
    unary(channel, "join", "/selvage.mesh.v1.NodeAgent/Join", request).await.map(tonic::Response::into_inner)
}

/// Says where this node can be reached.
pub async fn report(channel: Channel, request: ReportRequest) -> Result<Reported, CallError> {
    let answer = unary::<_, ReportResponse>(channel, "report", "/selvage.mesh.v1.NodeAgent/Report", request);
    let answer = answer.await?;
    let date = answer.metadata().get("date").and_then(|d| d.to_str().ok()).and_then(http_date);
    Ok(Reported { clock_ahead: date.map(|theirs| seconds_between(theirs, SystemTime::now())) })
}

/// What the controller's answer to a report tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported {
    /// Seconds by which this node's clock is ahead of the controller's, to about a second.
    pub clock_ahead: Option<i64>,
}

fn http_date(text: &str) -> Option<SystemTime> {
    jiff::fmt::rfc2822::parse(text).ok().map(|z| z.timestamp().into())
}

fn seconds_between(from: SystemTime, to: SystemTime) -> i64 {
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    to.duration_since(from).map_or_else(|e| -seconds(e.duration()), seconds)
}

async fn unary<Q, A>(
    channel: Channel,
    call: &'static str,
    path: &'static str,
    request: Q,
) -> Result<tonic::Response<A>, CallError>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let refused = |status| CallError::Refused { call, status: Box::new(status) };
    let mut stub = stub(channel);
    let exchange = async {
        stub.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
        let codec: ProstCodec<Q, A> = ProstCodec::default();
        stub.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec).await
    };
    match tokio::time::timeout(CALL, exchange).await {
        Ok(answer) => answer.map_err(refused),
        Err(_) => Err(refused(tonic::Status::deadline_exceeded("no answer in time"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controllers_date_tells_how_wrong_a_clock_is() {
        let theirs = http_date("Sun, 22 Nov 2026 18:41:39 GMT").unwrap();
        let at = |s: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        assert_eq!(theirs, at(1_795_372_899));
        assert_eq!(seconds_between(theirs, at(1_795_372_999)), 100);
        assert_eq!(seconds_between(theirs, at(1_795_372_799)), -100);
        assert_eq!(http_date("yesterday"), None);
    }
}
