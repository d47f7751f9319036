//! The certificate authority: one ECDSA key in a directory. It decides what a node certificate says; a request
//! contributes nothing but its public key.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer, pem::PemObject};
use sha2::{Digest, Sha256};

use crate::{
    files::{DirLock, FileError, private_dir, read_optional, write_private},
    shelf::StoreError,
    spiffe::{NodeName, TrustDomain},
};

/// How long a node certificate holds. Nodes renew at half of it; a node that is offline for longer joins again.
pub const NODE_CERT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Certificates start in the past by this much: clocks of edge nodes are not exact.
const BACKDATE: u64 = 300;
const CA_TTL: u64 = 10 * 365 * 24 * 3600;
/// A P-256 request is below 1 KiB; RSA 4096 would be 2 KiB and is not accepted anyway.
const MAX_CSR_BYTES: usize = 8 << 10;

/// Why the CA cannot be loaded or created.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file could not be read or written.
    #[error("keep the certificate authority")]
    File(#[from] FileError),
    /// A store other than a directory failed.
    #[error("keep the certificate authority")]
    Store(#[from] StoreError),
    /// Key without certificate or the reverse: somebody has to decide, the controller does not overwrite either.
    #[error("{} has only one of ca.key and ca.crt; restore the other or remove both", .0.display())]
    Incomplete(PathBuf),
    /// A file is there and is not what it should be.
    #[error("{} is not usable: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key could not be made or the certificate not signed.
    #[error("create the certificate authority: {0}")]
    Create(String),
}

/// Why a certificate is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// Larger than any honest request.
    #[error("certificate request of {0} bytes is larger than the limit of {MAX_CSR_BYTES}")]
    TooLarge(usize),
    /// Not a request, or its signature does not match its key.
    #[error("certificate request refused: {0}")]
    BadRequest(String),
    /// The key type is not accepted.
    #[error("certificate request refused: keys must be ECDSA P-256 or P-384, or Ed25519")]
    KeyType,
    /// Signing failed.
    #[error("sign certificate: {0}")]
    Sign(String),
}

/// The CA of one mesh.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    trust_domain: TrustDomain,
}

/// A certificate with its private key, made by the CA for a program of its own side.
pub struct Issued {
    /// Leaf first, then the CA: joining nodes compare the latter with the hash in their token.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivatePkcs8KeyDer<'static>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

impl Authority {
    /// Loads the CA from `dir`, or creates it there. Two processes that start at once get the same CA.
    pub fn open(dir: &Path, trust_domain: &TrustDomain, now: u64) -> Result<Self, AuthorityError> {
        private_dir(dir)?;
        let _lock = DirLock::acquire(dir)?;
        let (key_path, cert_path) = (dir.join("ca.key"), dir.join("ca.crt"));
        let (key_pem, cert_pem) = match (read_optional(&key_path)?, read_optional(&cert_path)?) {
            (Some(key), Some(cert)) => (key, cert),
            (None, None) => {
                let (key, cert) = Self::generate(trust_domain, now)?;
                // The key goes first: a certificate alone would be published and useless.
                write_private(&key_path, key.as_bytes())?;
                write_private(&cert_path, cert.as_bytes())?;
                (key.into_bytes(), cert.into_bytes())
            }
            _ => return Err(AuthorityError::Incomplete(dir.to_owned())),
        };
        Self::from_pem(&key_pem, &cert_pem, trust_domain, dir)
    }

    /// Makes a CA: its key and its certificate, as PEM.
    pub fn generate(trust_domain: &TrustDomain, now: u64) -> Result<(String, String), AuthorityError> {
        create(trust_domain, now)
    }

    /// A CA that is kept at `place`, which errors name.
    pub fn from_pem(
        key_pem: &[u8],
        cert_pem: &[u8],
        trust_domain: &TrustDomain,
        place: &Path,
    ) -> Result<Self, AuthorityError> {
        Self::load(key_pem, cert_pem, trust_domain)
            .map_err(|(file, reason)| AuthorityError::Corrupt { path: place.join(file), reason })
    }

    fn load(
        key_pem: &[u8],
        cert_pem: &[u8],
        trust_domain: &TrustDomain,
    ) -> Result<Self, (&'static str, String)> {
        let bad_key = |e: &dyn fmt::Display| ("ca.key", e.to_string());
        let bad_cert = |e: &dyn fmt::Display| ("ca.crt", e.to_string());
        let key_text = std::str::from_utf8(key_pem).map_err(|e| bad_key(&e))?;
        let key = KeyPair::from_pem(key_text).map_err(|e| bad_key(&e))?;
        let certificate = CertificateDer::from_pem_slice(cert_pem).map_err(|e| bad_cert(&e))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|e| bad_cert(&e))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(bad_cert(&"does not belong to ca.key"));
        }
        let domain = certificate_uris(&parsed).into_iter().next();
        let expected = format!("spiffe://{trust_domain}");
        if domain.as_deref() != Some(expected.as_str()) {
            let found = domain.unwrap_or_else(|| "no identity".to_owned());
            return Err(bad_cert(&format!("is for {found}, the configured trust domain is {trust_domain}")));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| bad_cert(&e))?;
        let certificate_pem = String::from_utf8_lossy(cert_pem).into_owned();
        Ok(Self { issuer, certificate, certificate_pem, trust_domain: trust_domain.clone() })
    }

    /// The CA certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA certificate as PEM, as Kubernetes wants it of webhooks.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// SHA-256 of the CA certificate: what join tokens carry.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.certificate).into()
    }

    /// When the CA's certificate ends, in seconds since 1970.
    pub fn expires(&self) -> u64 {
        let parsed = x509_parser::parse_x509_certificate(&self.certificate);
        parsed
            .ok()
            .and_then(|(_, c)| u64::try_from(c.validity().not_after.timestamp()).ok())
            .unwrap_or_default()
    }

    /// The trust domain that this CA vouches for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// A certificate for `node` with the key of the request. Names and extensions that the request asks for are
    /// ignored: the caller has established who asks, the request has not.
    pub fn sign_node(
        &self,
        node: &NodeName,
        csr_der: &[u8],
        ttl: Duration,
        now: u64,
    ) -> Result<CertificateDer<'static>, SignError> {
        if csr_der.len() > MAX_CSR_BYTES {
            return Err(SignError::TooLarge(csr_der.len()));
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .map_err(|e| SignError::BadRequest(e.to_string()))?;
        let accepted = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
        if !accepted.contains(&request.public_key.algorithm()) {
            return Err(SignError::KeyType);
        }
        let uri = self.trust_domain.node_id(node);
        let params = leaf(node.as_str(), vec![uri_san(&uri)?], ttl, now);
        let signed = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|e| SignError::Sign(e.to_string()))?;
        Ok(signed.der().clone())
    }

    /// A certificate with a fresh key for the controller itself. `names` are DNS names or IP addresses under which
    /// nodes reach it.
    pub fn issue_controller(&self, names: &[String], ttl: Duration, now: u64) -> Result<Issued, SignError> {
        let sign = |e: rcgen::Error| SignError::Sign(e.to_string());
        let mut sans = vec![uri_san(&self.trust_domain.controller_id())?];
        for name in names {
            sans.push(match name.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(sign)?),
            });
        }
        let key = KeyPair::generate().map_err(sign)?;
        let signed = leaf("controller", sans, ttl, now).signed_by(&key, &self.issuer).map_err(sign)?;
        Ok(Issued {
            chain: vec![signed.der().clone(), self.certificate.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
    }
}

fn uri_san(uri: &str) -> Result<SanType, SignError> {
    Ok(SanType::URI(uri.try_into().map_err(|e: rcgen::Error| SignError::Sign(e.to_string()))?))
}

fn create(trust_domain: &TrustDomain, now: u64) -> Result<(String, String), AuthorityError> {
    let failed = |e: rcgen::Error| AuthorityError::Create(e.to_string());
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Selvage mesh CA");
    // The trust domain is in the certificate, so that a CA cannot be reused by mistake under another one.
    params.subject_alt_names = vec![
        uri_san(&format!("spiffe://{trust_domain}")).map_err(|e| AuthorityError::Create(e.to_string()))?,
    ];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial());
    set_validity(&mut params, now, CA_TTL);
    let cert = params.self_signed(&key).map_err(failed)?;
    Ok((key.serialize_pem(), cert.pem()))
}

fn leaf(common_name: &str, sans: Vec<SanType>, ttl: Duration, now: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    // A common name holds at most 64 characters and nobody reads it for identity: the URI is the identity.
    params.distinguished_name.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    params.subject_alt_names = sans;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial());
    set_validity(&mut params, now, ttl.as_secs());
    params
}

fn set_validity(params: &mut CertificateParams, now: u64, ttl: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(BACKDATE));
    params.not_after = epoch + Duration::from_secs(now.saturating_add(ttl));
}

/// 127 random bits: positive, and never repeated.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] &= 0x7f;
    SerialNumber::from_slice(&bytes)
}

fn certificate_uris(cert: &x509_parser::certificate::X509Certificate<'_>) -> Vec<String> {
    use x509_parser::extensions::GeneralName;
    let Ok(Some(san)) = cert.subject_alternative_name() else { return Vec::new() };
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    san.value.general_names.iter().filter_map(uri).collect()
}

#[cfg(test)]
mod tests;
