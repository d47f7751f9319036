//! The certificate authority: an ECDSA key that signs, and the CAs beside it that are trusted while one follows another.
//! It decides what a node certificate says; a request contributes nothing but its public key.

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
    files::{DirLock, FileError, private_dir},
    renewal::{Kept, Lives},
    shelf::StoreError,
    spiffe::{NodeName, TrustDomain},
    state_dir::load_or_create,
};

/// How long a node certificate holds. Nodes renew when two thirds of it are over; one that is away for longer joins again.
pub const NODE_CERT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Certificates start in the past by this much, in seconds: clocks of edge nodes are not exact.
pub const BACKDATE: u64 = 300;
/// What is named when a CA beside the one that signs is damaged.
pub(crate) const OTHERS: &str = "renewal.json";
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
    /// Nobody has renewed it in years, or the clock is wrong.
    #[error(
        "the CA's certificate ended {seconds} s ago: set this machine's clock, or remove ca.key and ca.crt (in a cluster: \
         Secret mesh-ca) to begin anew with a CA that all nodes have to join"
    )]
    Ended {
        /// How long ago.
        seconds: u64,
    },
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
    trust_domain: TrustDomain,
    /// Seconds since 1970 at which the certificate of the one that signs ends.
    ends: u64,
    /// The one that signs, then the next one, then former ones.
    trusted: Vec<CertificateDer<'static>>,
    /// What leads to the one that signs from former ones.
    vouchers: Vec<CertificateDer<'static>>,
    bundle_pem: String,
}

/// A certificate with its private key, made by the CA for a program of its own side.
pub struct Issued {
    /// Leaf first, then the CA, then former ones with what leads from them to it: joining nodes look for the one whose hash
    /// is in their token.
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
    /// Loads the CA from `dir` as it is, or creates it there. Two processes that start at once get the same CA.
    pub fn open(dir: &Path, trust_domain: &TrustDomain, now: u64) -> Result<Self, AuthorityError> {
        private_dir(dir)?;
        let _lock = DirLock::acquire(dir)?;
        Self::of(&load_or_create(dir, trust_domain, &Lives::default(), now)?, trust_domain, dir)
    }

    /// A CA that is kept at `place`, which errors name.
    pub fn of(kept: &Kept, trust_domain: &TrustDomain, place: &Path) -> Result<Self, AuthorityError> {
        Self::load(kept, trust_domain)
            .map_err(|(file, reason)| AuthorityError::Corrupt { path: place.join(file), reason })
    }

    fn load(kept: &Kept, trust_domain: &TrustDomain) -> Result<Self, (&'static str, String)> {
        let bad_key = |e: &dyn fmt::Display| ("ca.key", e.to_string());
        let bad_cert = |e: &dyn fmt::Display| ("ca.crt", e.to_string());
        let key = KeyPair::from_pem(&kept.key).map_err(|e| bad_key(&e))?;
        let certificate =
            CertificateDer::from_pem_slice(kept.certificate.as_bytes()).map_err(|e| bad_cert(&e))?;
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
        let (mut trusted, mut bundle_pem) = (vec![certificate], kept.certificate.clone());
        for pem in kept.others.trusted() {
            let other = other(pem)?;
            if !trusted.contains(&other) {
                trusted.push(other);
                bundle_pem.push_str(pem);
            }
        }
        let vouchers = kept.others.vouchers().map(other).collect::<Result<_, _>>()?;
        let (_, ends) = Generation::validity(&kept.certificate).map_err(|e| bad_cert(&e))?;
        Ok(Self { issuer, trust_domain: trust_domain.clone(), ends, trusted, vouchers, bundle_pem })
    }

    /// The certificate of the one that signs.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        // There is one: it is the first that was put in.
        &self.trusted[0]
    }

    /// All CAs that are to be trusted now: the one that signs first.
    pub fn trusted(&self) -> &[CertificateDer<'static>] {
        &self.trusted
    }

    /// The same as PEM, as Kubernetes wants it of webhooks.
    pub fn bundle_pem(&self) -> &str {
        &self.bundle_pem
    }

    /// SHA-256 of the certificate of the one that signs: what join tokens carry.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(self.certificate()).into()
    }

    /// When the certificate of the one that signs ends, in seconds since 1970.
    pub fn expires(&self) -> u64 {
        self.ends
    }

    /// The trust domain that this CA vouches for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// For how long a certificate may hold that is asked for `ttl`: no longer than the CA itself.
    fn at_most(&self, ttl: Duration, now: u64) -> Duration {
        ttl.min(Duration::from_secs(self.ends.saturating_sub(now)))
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
        let params = leaf(node.as_str(), vec![uri_san(&uri)?], self.at_most(ttl, now), now);
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
        let params = leaf("controller", sans, self.at_most(ttl, now), now);
        let signed = params.signed_by(&key, &self.issuer).map_err(sign)?;
        let mut chain = vec![signed.der().clone(), self.certificate().clone()];
        chain.extend_from_slice(&self.vouchers);
        Ok(Issued { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()) })
    }
}

fn uri_san(uri: &str) -> Result<SanType, SignError> {
    Ok(SanType::URI(uri.try_into().map_err(|e: rcgen::Error| SignError::Sign(e.to_string()))?))
}

fn other(pem: &str) -> Result<CertificateDer<'static>, (&'static str, String)> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| (OTHERS, e.to_string()))
}

/// Key and certificate of one CA, as PEM.
pub(crate) struct Generation {
    pub(crate) key: String,
    pub(crate) certificate: String,
}

impl Generation {
    pub(crate) fn create(
        trust_domain: &TrustDomain,
        ttl: Duration,
        now: u64,
    ) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(failed)?;
        let params = ca_params(trust_domain, &key, now, now.saturating_add(ttl.as_secs()))?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self { key: key.serialize_pem(), certificate: certificate.pem() })
    }

    /// A certificate by this CA for the key of another one of the same mesh, under the other's name.
    pub(crate) fn vouch_for(
        &self,
        trust_domain: &TrustDomain,
        other_key: &str,
        ends: u64,
        now: u64,
    ) -> Result<String, AuthorityError> {
        let (own, other) = (KeyPair::from_pem(&self.key), KeyPair::from_pem(other_key));
        let (own, other) = (own.map_err(failed)?, other.map_err(failed)?);
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, own).map_err(failed)?;
        let mut params = ca_params(trust_domain, &other, now, ends)?;
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&other, &issuer).map_err(failed)?.pem())
    }

    /// From when to when a certificate holds, in seconds since 1970.
    pub(crate) fn validity(certificate: &str) -> Result<(u64, u64), AuthorityError> {
        let bad = |e: &dyn fmt::Display| AuthorityError::Create(format!("a CA's certificate: {e}"));
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|e| bad(&e))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|e| bad(&e))?;
        let seconds = |t: i64| u64::try_from(t).unwrap_or_default();
        let validity = parsed.validity();
        Ok((seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp())))
    }
}

fn failed(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Create(error.to_string())
}

fn ca_params(
    trust_domain: &TrustDomain,
    key: &KeyPair,
    now: u64,
    ends: u64,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    // Each CA has a name of its own, or verifiers would try the key of one on what the other has signed.
    let tag: String = Sha256::digest(key.der_bytes()).iter().take(4).map(|b| format!("{b:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("Selvage mesh CA {tag}"));
    // The trust domain is in the certificate, so that a CA cannot be reused by mistake under another one.
    params.subject_alt_names = vec![
        uri_san(&format!("spiffe://{trust_domain}")).map_err(|e| AuthorityError::Create(e.to_string()))?,
    ];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial());
    set_validity(&mut params, now, ends.saturating_sub(now));
    Ok(params)
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
