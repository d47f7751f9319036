//! The node's certificate, key and roots, replaced while connections come and go.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::verify::PeerVerifier;
use super::{Expect, IdentityError, SpiffeId, identity_of};

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM text does not parse.
    #[error("{what} is not PEM")]
    Pem {
        /// Which of them.
        what: &'static str,
        /// The parser's word.
        source: rustls_pki_types::pem::Error,
    },
    /// There is no certificate where one is needed.
    #[error("no certificate in {0}")]
    Empty(&'static str),
    /// The certificate and the key do not fit, or the key is of an unknown kind.
    #[error("the certificate and its key cannot be used")]
    Key(#[source] rustls::Error),
    /// A root cannot be a trust anchor.
    #[error("a root certificate cannot be used")]
    Root(#[source] rustls::Error),
    /// The verifier of client certificates cannot be made from the roots.
    #[error("the roots cannot verify clients")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// Our own certificate names nobody.
    #[error("our own certificate has no usable identity")]
    Identity(#[source] IdentityError),
    /// Our own certificate is of another trust domain.
    #[error("our own certificate is for {0}, another trust domain")]
    TrustDomain(SpiffeId),
    /// The configuration cannot be built.
    #[error("the TLS configuration cannot be built")]
    Config(#[source] rustls::Error),
}

/// A certificate chain (leaf first), its key, and the roots to trust.
#[derive(Debug)]
pub struct Credentials {
    /// Leaf first, then intermediates; the server of `Join` adds its CA, so that a pin can find it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Key of the leaf.
    pub key: PrivateKeyDer<'static>,
    /// Trust anchors.
    pub roots: Vec<CertificateDer<'static>>,
}

impl Credentials {
    /// Reads the three from PEM texts.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8]) -> Result<Self, TlsError> {
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|source| TlsError::Pem { what: "key", source })?;
        Ok(Self { chain: certificates("chain", chain)?, key, roots: certificates("roots", roots)? })
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|source| TlsError::Pem { what, source })?;
    if all.is_empty() { Err(TlsError::Empty(what)) } else { Ok(all) }
}

/// What handshakes use now.
pub(crate) struct Material {
    certified: Arc<CertifiedKey>,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) client_chain: Arc<dyn ClientCertVerifier>,
    identity: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Material {
    fn new(
        credentials: Credentials,
        trust_domain: &str,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let Credentials { chain, key, roots: anchors } = credentials;
        let leaf = chain.first().ok_or(TlsError::Empty("chain"))?;
        let identity = identity_of(leaf).map_err(TlsError::Identity)?;
        if identity.trust_domain() != trust_domain {
            return Err(TlsError::TrustDomain(identity));
        }
        let (not_before, not_after) = validity(leaf).map_err(TlsError::Identity)?;
        let certified = CertifiedKey::from_der(chain, key, provider).map_err(TlsError::Key)?;
        let mut roots = RootCertStore::empty();
        for anchor in anchors {
            roots.add(anchor).map_err(TlsError::Root)?;
        }
        let roots = Arc::new(roots);
        let client_chain =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
                .build()
                .map_err(TlsError::Verifier)?;
        Ok(Self { certified: Arc::new(certified), roots, client_chain, identity, not_before, not_after })
    }
}

fn validity(leaf: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), IdentityError> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| IdentityError::Certificate)?;
    let at = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let validity = parsed.validity();
    Ok((at(validity.not_before.timestamp()), at(validity.not_after.timestamp())))
}

/// Whether a server insists on a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// No handshake without one.
    Required(Expect),
    /// Checked when there is one; the service decides what works without (joining does).
    Optional(Expect),
    /// Not asked for: clients are no nodes.
    NotAsked,
}

/// A node's or the controller's TLS identity. Cheap to clone; all clones see a replacement at once,
/// and so do configurations made before it.
#[derive(Clone)]
pub struct NodeTls {
    material: Arc<ArcSwap<Material>>,
    provider: Arc<CryptoProvider>,
    trust_domain: Arc<str>,
}

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTls").field("identity", &self.material.load().identity).finish_non_exhaustive()
    }
}

impl NodeTls {
    /// Checks that certificate, key and roots can be used.
    pub fn new(trust_domain: &str, credentials: Credentials) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let material = Material::new(credentials, trust_domain, &provider)?;
        Ok(Self {
            material: Arc::new(ArcSwap::from_pointee(material)),
            provider,
            trust_domain: trust_domain.into(),
        })
    }

    /// Uses other credentials from the next handshake on. Changes nothing when they are bad.
    pub fn replace(&self, credentials: Credentials) -> Result<(), TlsError> {
        let material = Material::new(credentials, &self.trust_domain, &self.provider)?;
        self.material.store(Arc::new(material));
        Ok(())
    }

    /// Who we are.
    pub fn identity(&self) -> SpiffeId {
        self.material.load().identity.clone()
    }

    /// When our certificate began to be and ceases to be valid: renew well before the latter.
    pub fn validity(&self) -> (SystemTime, SystemTime) {
        let material = self.material.load();
        (material.not_before, material.not_after)
    }

    /// For servers.
    pub fn server_config(&self, clients: ClientAuth, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Config)?;
        let verified = |expect, mandatory| Arc::new(self.verifier(expect, mandatory));
        let builder = match clients {
            ClientAuth::Required(expect) => builder.with_client_cert_verifier(verified(expect, true)),
            ClientAuth::Optional(expect) => builder.with_client_cert_verifier(verified(expect, false)),
            ClientAuth::NotAsked => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(self.resolver()));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// For clients that call `expect`. Wants [`super::any_name`] as the server name.
    pub fn client_config(&self, expect: Expect, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Config)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self.verifier(expect, true)))
            .with_client_cert_resolver(Arc::new(self.resolver()));
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    fn verifier(&self, expect: Expect, mandatory: bool) -> PeerVerifier {
        PeerVerifier {
            material: Arc::clone(&self.material),
            provider: Arc::clone(&self.provider),
            trust_domain: Arc::clone(&self.trust_domain),
            expect,
            mandatory,
        }
    }

    fn resolver(&self) -> Resolver {
        Resolver { material: Arc::clone(&self.material) }
    }
}

/// Hands out the certificate in force.
struct Resolver {
    material: Arc<ArcSwap<Material>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.material.load().certified))
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.material.load().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
