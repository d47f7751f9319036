//! Who a certificate is for.

use std::fmt;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longest identity that the SPIFFE standard allows.
const MAX_ID: usize = 2048;

/// `spiffe://<trust domain>/<path>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path begins in `text`.
    path: usize,
}

/// Why a certificate names nobody we can accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not DER, or not X.509.
    #[error("the certificate does not parse")]
    Certificate,
    /// The peer sent no certificate.
    #[error("the peer has no certificate")]
    NoCertificate,
    /// None or several URI names; SPIFFE demands one.
    #[error("the certificate has {0} URI names, not one")]
    UriNames(usize),
    /// The URI is not a SPIFFE identity.
    #[error("{0:?} is not a SPIFFE identity")]
    NotSpiffe(String),
    /// Another trust domain.
    #[error("{id} is not of trust domain {expected}")]
    TrustDomain {
        /// The identity presented.
        id: SpiffeId,
        /// Ours.
        expected: String,
    },
    /// The certificate is not for this use (extended key usage).
    #[error("the certificate is not meant for a TLS {0}")]
    Usage(&'static str),
    /// A known identity, but not the one that was called.
    #[error("the peer is {found}, not {expected}")]
    Unexpected {
        /// The identity presented.
        found: SpiffeId,
        /// Who was called.
        expected: String,
    },
}

impl SpiffeId {
    /// Parses and checks the form.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let refuse = || IdentityError::NotSpiffe(text.chars().take(100).collect());
        let rest = text.strip_prefix("spiffe://").ok_or_else(refuse)?;
        let (domain, path) = rest.split_once('/').ok_or_else(refuse)?;
        let domain_fits =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        let path_fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/');
        let segment_fits = |segment: &str| !matches!(segment, "" | "." | "..");
        let fits = text.len() <= MAX_ID
            && !domain.is_empty()
            && domain.bytes().all(domain_fits)
            && path.bytes().all(path_fits)
            && path.split('/').all(segment_fits);
        if !fits {
            return Err(refuse());
        }
        Ok(Self { path: text.len() - path.len(), text: text.into() })
    }

    /// The whole identity.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.text["spiffe://".len()..self.path - 1]
    }

    /// What follows the trust domain, without the slash.
    pub fn path(&self) -> &str {
        &self.text[self.path..]
    }

    /// The node's name, when it is a node.
    pub fn node(&self) -> Option<&str> {
        self.path().strip_prefix("node/").filter(|name| !name.contains('/'))
    }

    /// Whether it is the controller.
    pub fn is_controller(&self) -> bool {
        self.path() == "controller"
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The authenticated other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its identity.
    pub spiffe: SpiffeId,
    /// Its node name, when it is a node.
    pub node: Option<Arc<str>>,
}

impl PeerIdentity {
    /// The identity of a connection whose handshake is done, from `peer_certificates()`.
    pub fn from_certificates(certificates: Option<&[CertificateDer<'_>]>) -> Result<Self, IdentityError> {
        let leaf = certificates.and_then(<[_]>::first).ok_or(IdentityError::NoCertificate)?;
        let spiffe = identity_of(leaf)?;
        Ok(Self { node: spiffe.node().map(Arc::from), spiffe })
    }
}

/// Reads the one SPIFFE identity of a certificate. Says nothing about who signed it.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<SpiffeId, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::Certificate)?;
    let names = parsed.subject_alternative_name().map_err(|_| IdentityError::Certificate)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    match uris.as_slice() {
        [uri] => SpiffeId::parse(uri),
        other => Err(IdentityError::UriNames(other.len())),
    }
}

/// Which side of TLS a certificate is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    Client,
    Server,
}

/// The usage must be stated: webpki takes a certificate without the extension for any use.
pub(crate) fn check_usage(certificate: &CertificateDer<'_>, usage: Usage) -> Result<(), IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::Certificate)?;
    let stated = parsed.extended_key_usage().map_err(|_| IdentityError::Certificate)?;
    let (fits, name) = match usage {
        Usage::Client => (stated.as_ref().is_some_and(|eku| eku.value.client_auth), "client"),
        Usage::Server => (stated.as_ref().is_some_and(|eku| eku.value.server_auth), "server"),
    };
    if fits { Ok(()) } else { Err(IdentityError::Usage(name)) }
}
