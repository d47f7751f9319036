//! Who may be at the other end of a TLS connection that a rule orders.

use std::{net::IpAddr, sync::Arc};

use rustls::{
    CertificateError, Error,
    client::{
        WebPkiServerVerifier,
        danger::{ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A server shows a certificate of our authorities, for the name that was called or for one of the rule's names.
#[derive(Debug)]
pub(crate) struct ByRule {
    pub(crate) provider: Arc<CryptoProvider>,
    /// None = the certificate is not looked at.
    pub(crate) chain: Option<Arc<WebPkiServerVerifier>>,
    /// Instead of the name that was called; empty = that name.
    pub(crate) names: Box<[Box<str>]>,
}

impl ServerCertVerifier for ByRule {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        let verified = chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if self.names.is_empty() {
            return verified;
        }
        match verified {
            // The name is looked at last: all else is right.
            Ok(_)
            | Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {}
            Err(e) => return Err(e),
        }
        if has_name(end_entity, &self.names) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::NotValidForName))
    }

    mesh_net::signatures_by_provider!();
}

/// Whether a certificate is for one of the names: DNS (a wildcard covers one label), URI or address.
pub(crate) fn has_name(certificate: &CertificateDer<'_>, names: &[Box<str>]) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let Ok(Some(listed)) = parsed.subject_alternative_name() else { return false };
    listed.value.general_names.iter().any(|name| match name {
        GeneralName::DNSName(dns) => names.iter().any(|n| dns_fits(dns, n)),
        GeneralName::URI(uri) => names.iter().any(|n| **n == **uri),
        GeneralName::IPAddress(bytes) => {
            let ip = match <[u8; 4]>::try_from(*bytes) {
                Ok(v4) => Some(IpAddr::from(v4)),
                Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
            };
            names.iter().any(|n| ip.is_some() && n.parse().ok() == ip)
        }
        _ => false,
    })
}

/// Whether a DNS name of a certificate covers one.
pub(crate) fn dns_fits(listed: &str, name: &str) -> bool {
    match listed.strip_prefix("*.") {
        Some(parent) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => listed.eq_ignore_ascii_case(name),
    }
}
