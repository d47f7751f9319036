//! Certificates that prove a peer id, as libp2p's TLS handshake specifies them: self-signed, with an extension in which
//! the peer's own key signs the certificate's key. `libp2p-tls` can make and check them too, but brings a second
//! cryptography library, a megabyte of which half is never used; here all of it is aws-lc.

use std::sync::Arc;

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use libp2p::{
    PeerId,
    identity::{Keypair, PublicKey},
};
use rustls::{
    SignatureScheme,
    crypto::aws_lc_rs::sign::any_eddsa_type,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime},
    sign::CertifiedKey,
};
use x509_parser::{
    asn1_rs::{FromDer as _, Oid, oid},
    certificate::X509Certificate,
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ECDSA_WITH_SHA256,
        OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519,
    },
};

/// libp2p's extension: `SignedKey ::= SEQUENCE { publicKey OCTET STRING, signature OCTET STRING }`.
const EXTENSION: [u64; 9] = [1, 3, 6, 1, 4, 1, 53594, 1, 1];
const EXTENSION_OID: Oid<'static> = oid!(1.3.6.1.4.1.53594.1.1);
/// What the peer's key signs, before the certificate's key.
const PREFIX: &[u8] = b"libp2p-tls-handshake:";
/// What signatures of handshakes are checked with; RSA is for peers that have nothing else, and there are none.
pub(crate) const SCHEMES: [SignatureScheme; 3] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
];

/// Why a certificate proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("it is no X.509 certificate, or something follows it")]
    Encoding,
    #[error("it is not valid at this time; compare the clocks")]
    Time,
    #[error("it has a critical extension that is not known")]
    Critical,
    #[error("it has no libp2p extension, or two, or one that cannot be read")]
    Extension,
    #[error("the key of the peer is of a kind that is not known")]
    HostKey,
    #[error("it is not signed by the peer whose key it names")]
    HostSignature,
    #[error("its key or signature is none of ECDSA P-256, ECDSA P-384, Ed25519")]
    Algorithm,
    #[error("it is not signed by its own key")]
    SelfSignature,
    #[error("the handshake is not signed by its key")]
    Handshake,
}

/// A certificate of this node, with a key made for it alone: Ed25519, which stays fast where aws-lc is built small.
pub(crate) fn generate(host: &Keypair) -> Result<Arc<CertifiedKey>, String> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(|e| e.to_string())?;
    let certificate = self_signed(host, &key)?;
    let private = PrivatePkcs8KeyDer::from(key.serialize_der());
    let private = any_eddsa_type(&private).map_err(|e| e.to_string())?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate], private)))
}

fn self_signed(host: &Keypair, key: &rcgen::KeyPair) -> Result<CertificateDer<'static>, String> {
    use rcgen::PublicKeyData as _;
    let message = [PREFIX, &key.subject_public_key_info()].concat();
    let signature = host.sign(&message).map_err(|e| e.to_string())?;
    let signed_key = yasna::encode_der(&(host.public().encode_protobuf(), signature));
    let mut extension = rcgen::CustomExtension::from_oid_content(&EXTENSION, signed_key);
    extension.set_criticality(true);
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.custom_extensions.push(extension);
    // Valid from 1975 to 4096: a node's clock may be wrong, and the registry says who is in.
    Ok(params.self_signed(key).map_err(|e| e.to_string())?.into())
}

/// A certificate that was checked.
pub(crate) struct PeerCertificate<'a> {
    inner: X509Certificate<'a>,
    host: PublicKey,
}

/// Reads and checks a certificate: all that the handshake's specification asks for, but the time, which [`at`] checks.
///
/// [`at`]: PeerCertificate::at
pub(crate) fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Result<PeerCertificate<'a>, CertificateError> {
    let certificate = unverified(certificate)?;
    let (host, signature) = signed_key(&certificate.inner)?;
    let message = [PREFIX, certificate.inner.public_key().raw].concat();
    if !host.verify(&message, &signature) {
        return Err(CertificateError::HostSignature);
    }
    // One's own key signs, so the algorithm of key and signature is one.
    let algorithm = algorithm(&certificate.inner)?;
    let signed_as = &certificate.inner.signature_algorithm.algorithm;
    let fits = match algorithm.0 {
        SignatureScheme::ED25519 => *signed_as == OID_SIG_ED25519,
        SignatureScheme::ECDSA_NISTP384_SHA384 => *signed_as == OID_SIG_ECDSA_WITH_SHA384,
        _ => *signed_as == OID_SIG_ECDSA_WITH_SHA256,
    };
    if !fits {
        return Err(CertificateError::Algorithm);
    }
    let body = certificate.inner.tbs_certificate.as_ref();
    certificate
        .verify(algorithm.1, body, &certificate.inner.signature_value.data)
        .map_err(|()| CertificateError::SelfSignature)?;
    Ok(certificate)
}

/// The same without its signatures, for one that was checked a moment ago in the same handshake.
fn unverified<'a>(certificate: &'a CertificateDer<'_>) -> Result<PeerCertificate<'a>, CertificateError> {
    let (rest, inner) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::Encoding)?;
    let strings = [&inner.signature_value, &inner.public_key().subject_public_key];
    let whole_bytes = strings.iter().all(|bits| bits.unused_bits == 0);
    if !rest.is_empty() || !whole_bytes || inner.signature_algorithm != inner.tbs_certificate.signature {
        return Err(CertificateError::Encoding);
    }
    let (host, _) = signed_key(&inner)?;
    Ok(PeerCertificate { inner, host })
}

/// The peer's key, and its signature.
fn signed_key(certificate: &X509Certificate<'_>) -> Result<(PublicKey, Vec<u8>), CertificateError> {
    let mut found = None;
    for extension in certificate.extensions() {
        if extension.oid == EXTENSION_OID {
            if found.is_some() {
                return Err(CertificateError::Extension);
            }
            found = Some(extension.value);
        } else if extension.critical {
            return Err(CertificateError::Critical);
        }
    }
    let value = found.ok_or(CertificateError::Extension)?;
    let (key, signature): (Vec<u8>, Vec<u8>) =
        yasna::decode_der(value).map_err(|_| CertificateError::Extension)?;
    let key = PublicKey::try_decode_protobuf(&key).map_err(|_| CertificateError::HostKey)?;
    Ok((key, signature))
}

/// What the certificate's key signs with.
fn algorithm(
    certificate: &X509Certificate<'_>,
) -> Result<(SignatureScheme, &'static dyn VerificationAlgorithm), CertificateError> {
    let of = &certificate.public_key().algorithm;
    // Curves by name only: one that is spelt out could be anything.
    let curve = of.parameters.as_ref().and_then(|p| p.clone().oid().ok());
    if of.algorithm == OID_SIG_ED25519 && curve.is_none() {
        Ok((SignatureScheme::ED25519, &signature::ED25519))
    } else if of.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256) {
        Ok((SignatureScheme::ECDSA_NISTP256_SHA256, &signature::ECDSA_P256_SHA256_ASN1))
    } else if of.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_NIST_EC_P384) {
        Ok((SignatureScheme::ECDSA_NISTP384_SHA384, &signature::ECDSA_P384_SHA384_ASN1))
    } else {
        Err(CertificateError::Algorithm)
    }
}

impl PeerCertificate<'_> {
    /// Whose certificate it is.
    pub(crate) fn peer_id(&self) -> PeerId {
        self.host.to_peer_id()
    }

    /// Refuses it outside its time.
    pub(crate) fn at(&self, now: UnixTime) -> Result<(), CertificateError> {
        let valid = &self.inner.validity;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if valid.not_before.timestamp() <= now && now <= valid.not_after.timestamp() {
            Ok(())
        } else {
            Err(CertificateError::Time)
        }
    }

    fn verify(
        &self,
        algorithm: &'static dyn VerificationAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), ()> {
        let key = UnparsedPublicKey::new(algorithm, &self.inner.public_key().subject_public_key.data);
        key.verify(message, signature).map_err(|_| ())
    }
}

/// Checks that a handshake is signed by the key of a certificate that [`parse`] has taken.
pub(crate) fn verify_handshake(
    certificate: &CertificateDer<'_>,
    scheme: SignatureScheme,
    message: &[u8],
    signature: &[u8],
) -> Result<(), CertificateError> {
    let certificate = unverified(certificate)?;
    let (of_key, algorithm) = algorithm(&certificate.inner)?;
    if of_key != scheme {
        return Err(CertificateError::Algorithm);
    }
    certificate.verify(algorithm, message, signature).map_err(|()| CertificateError::Handshake)
}

/// Whose certificate it is, of one that a handshake has checked.
pub(crate) fn peer_of(certificate: &CertificateDer<'_>) -> Result<PeerId, CertificateError> {
    Ok(unverified(certificate)?.peer_id())
}

#[cfg(test)]
mod tests;
