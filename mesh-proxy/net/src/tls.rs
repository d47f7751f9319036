//! TLS 1.3 between nodes and the controller, both sides known by SPIFFE identity.
//!
//! Certificates carry no host names: a peer is who its one URI SAN says, if our roots signed it.
//! Resumption is off, because a resumed session skips the verifiers and would outlive a rotation or
//! a removal.

mod identity;
mod material;
mod pin;
mod signatures;
mod verify;

use std::io;
use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

pub use identity::{IdentityError, PeerIdentity, SpiffeId, identity_of};
pub use material::{ClientAuth, Credentials, NodeTls, TlsError};
pub use pin::{fingerprint, join_client_config};
pub use verify::Expect;

/// What our client configurations want as the server's name: they look at the SPIFFE identity
/// instead, and an address sends no SNI.
pub fn any_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

/// Runs the client's side of a handshake.
pub async fn connect<S>(config: &Arc<ClientConfig>, stream: S) -> io::Result<client::TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    TlsConnector::from(Arc::clone(config)).connect(any_name(), stream).await
}

/// Runs the server's side of a handshake.
pub async fn accept<S>(config: &Arc<ServerConfig>, stream: S) -> io::Result<server::TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    TlsAcceptor::from(Arc::clone(config)).accept(stream).await
}

#[cfg(test)]
mod tests;
