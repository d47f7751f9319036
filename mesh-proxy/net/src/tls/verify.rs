//! The verifiers: webpki checks the chain, then we check usage, trust domain and identity.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DistinguishedName, OtherError};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::identity::{Usage, check_usage};
use super::material::Material;
use super::{IdentityError, SpiffeId, identity_of};

/// Who may be at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// This node.
    Node(String),
    /// Any node of the trust domain.
    AnyNode,
    /// The controller.
    Controller,
    /// Anyone of the trust domain.
    Anyone,
}

impl Expect {
    pub(crate) fn check(&self, id: SpiffeId) -> Result<SpiffeId, IdentityError> {
        let fits = match self {
            Self::Node(name) => id.node() == Some(name),
            Self::AnyNode => id.node().is_some(),
            Self::Controller => id.is_controller(),
            Self::Anyone => true,
        };
        if fits { Ok(id) } else { Err(IdentityError::Unexpected { found: id, expected: self.to_string() }) }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::AnyNode => f.write_str("a node"),
            Self::Controller => f.write_str("the controller"),
            Self::Anyone => f.write_str("anyone"),
        }
    }
}

/// All our own checks on a certificate whose chain is good.
pub(crate) fn check_peer(
    certificate: &CertificateDer<'_>,
    usage: Usage,
    trust_domain: &str,
    expect: &Expect,
) -> Result<SpiffeId, rustls::Error> {
    let checked = check_usage(certificate, usage).and_then(|()| identity_of(certificate)).and_then(|id| {
        if id.trust_domain() == trust_domain {
            expect.check(id)
        } else {
            Err(IdentityError::TrustDomain { id, expected: trust_domain.to_owned() })
        }
    });
    checked.map_err(|error| {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    })
}

/// Asked by clients about servers, and by servers about clients. Reads the roots at each handshake,
/// so that a rotation needs no new configuration.
pub(crate) struct PeerVerifier {
    pub(crate) material: Arc<ArcSwap<Material>>,
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) trust_domain: Arc<str>,
    pub(crate) expect: Expect,
    pub(crate) mandatory: bool,
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier")
            .field("trust_domain", &self.trust_domain)
            .field("expect", &self.expect)
            .finish()
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let material = self.material.load();
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &material.roots,
            intermediates,
            now,
            algorithms,
        )?;
        check_peer(end_entity, Usage::Server, &self.trust_domain, &self.expect)?;
        Ok(ServerCertVerified::assertion())
    }

    crate::signatures_by_provider!(only_tls13);
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Peers have one certificate; hints only make the handshake longer.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain = Arc::clone(&self.material.load().client_chain);
        chain.verify_client_cert(end_entity, intermediates, now)?;
        check_peer(end_entity, Usage::Client, &self.trust_domain, &self.expect)?;
        Ok(ClientCertVerified::assertion())
    }

    crate::signatures_by_provider!(only_tls13);
}
