//! Which certificates clients of a gateway may or must show.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use mesh_api::model::{ServerTls, server_tls::Mode};
use rustls::{
    CertificateError, DistinguishedName, Error,
    crypto::CryptoProvider,
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::outbound::tls::{material::Material, verify::has_name};

/// What a server asks of its clients; none = nothing.
pub(super) fn verifier(
    spec: &ServerTls,
    material: Option<&Material>,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
    let mandatory = match spec.mode() {
        Mode::Mutual => true,
        Mode::OptionalMutual => false,
        _ => return Ok(None),
    };
    let material = material.ok_or("there is no certificate")?;
    let chain = match spec.insecure_skip_verify {
        true => None,
        false => {
            let roots = material.roots()?.ok_or("there is no authority for client certificates")?;
            let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
                .with_crls(material.crls()?)
                .allow_unknown_revocation_status();
            let builder = if mandatory { builder } else { builder.allow_unauthenticated() };
            Some(builder.build().map_err(|e| e.to_string())?)
        }
    };
    Ok(Some(Arc::new(Clients {
        provider: Arc::clone(provider),
        chain,
        mandatory,
        names: spec.subject_alt_names.iter().map(|s| s.as_str().into()).collect(),
        keys: spec.verify_certificate_spki.clone(),
        hashes: spec.verify_certificate_hash.iter().map(|h| h.replace(':', "").to_lowercase()).collect(),
    })))
}

#[derive(Debug)]
struct Clients {
    provider: Arc<CryptoProvider>,
    /// None = certificates are not verified.
    chain: Option<Arc<dyn ClientCertVerifier>>,
    mandatory: bool,
    names: Box<[Box<str>]>,
    keys: Vec<String>,
    hashes: Vec<String>,
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.as_ref().map_or(&[], |c| c.root_hint_subjects())
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Some(chain) = &self.chain {
            chain.verify_client_cert(end_entity, intermediates, now)?;
        }
        let refused = || Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        if !self.names.is_empty() && !has_name(end_entity, &self.names) {
            return refused();
        }
        // The two lists are alternatives.
        let listed = !self.keys.is_empty() || !self.hashes.is_empty();
        if listed && !self.keys.contains(&key_of(end_entity)) && !self.hashes.contains(&hash_of(end_entity)) {
            return refused();
        }
        Ok(ClientCertVerified::assertion())
    }

    mesh_net::signatures_by_provider!();
}

/// SHA-256 of the key, as `openssl` prints it in base64.
fn key_of(certificate: &CertificateDer<'_>) -> String {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => BASE64_STANDARD.encode(Sha256::digest(parsed.public_key().raw)),
        Err(_) => String::new(),
    }
}

/// SHA-256 of the certificate in hexadecimal.
fn hash_of(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate).iter().map(|b| format!("{b:02x}")).collect()
}
