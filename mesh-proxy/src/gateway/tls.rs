//! TLS of a gateway's servers: certificates by name from secrets or files, client certificates, versions. A
//! configuration is made when a connection needs it, kept, and made anew when its parts change; open connections stay.

mod clients;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use mesh_api::model::{ServerTls, TlsVersion, server_tls::Mode};
use mesh_core::{Tables, gateway::listener::Server};
use mesh_net::tls::{ClientAuth, Expect};
use rustls::{
    ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::outbound::tls::{
    Identity,
    material::{Material, Origin, Seen},
    verify::dns_fits,
};

/// Most configurations that are kept; when there are more, all are made anew.
const MAX: usize = 1024;

const HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];

/// Configurations of all workers. Locked only while a connection begins.
#[derive(Default)]
pub(crate) struct ServerConfigs {
    kept: Mutex<HashMap<Arc<str>, Kept>>,
    identity: Option<Identity>,
}

struct Kept {
    spec: Arc<ServerTls>,
    origins: Vec<Origin>,
    seen: Vec<Seen>,
    config: Arc<ServerConfig>,
}

impl std::fmt::Debug for ServerConfigs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerConfigs")
    }
}

impl ServerConfigs {
    pub(super) fn new(identity: Option<Identity>) -> Self {
        Self { identity, ..Self::default() }
    }

    /// The configuration of a server as it is now.
    pub(super) fn server(&self, tables: &Tables, server: &Server) -> Result<Arc<ServerConfig>, String> {
        let (Some(spec), Some(key)) = (&server.tls, server.keys.first()) else {
            return Err("the server has no TLS settings".to_owned());
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(k) = kept.get_mut(key)
            && k.spec == *spec
            && k.origins.iter().zip(&mut k.seen).all(|(o, seen)| seen.holds(o, tables))
        {
            return Ok(Arc::clone(&k.config));
        }
        let origins = origins(spec);
        let mut read = Vec::new();
        for origin in &origins {
            read.push(origin.read(tables));
        }
        // A secret that is missing does not take the others' certificates away.
        let (mut materials, mut seen, mut failure) = (Vec::new(), Vec::new(), None);
        for (one, origin) in read.into_iter().zip(&origins) {
            match one {
                Ok((material, at)) => {
                    materials.push(material);
                    seen.push((origin.clone(), at));
                }
                Err(e) => failure = Some(e),
            }
        }
        let alpn = if server.http { HTTP } else { &[] };
        let config = match (spec.mode(), failure) {
            (Mode::IstioMutual, _) => self.mesh_config(alpn)?,
            (_, Some(e)) if materials.is_empty() => return Err(e),
            (_, failure) => {
                if let Some(e) = failure {
                    tracing::warn!(problem = %e, server = %key, "a certificate of a gateway");
                }
                by_spec(spec, &materials, alpn)?
            }
        };
        if kept.len() >= MAX {
            kept.clear();
        }
        let (origins, seen) = seen.into_iter().unzip();
        let entry = Kept { spec: Arc::clone(spec), origins, seen, config: Arc::clone(&config) };
        kept.insert(Arc::clone(key), entry);
        Ok(config)
    }

    fn mesh_config(&self, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, String> {
        let identity = self.identity.as_ref().and_then(|i| i.borrow().clone());
        let identity = identity.ok_or("this node has no certificate of the mesh")?;
        identity.server_config(ClientAuth::Required(Expect::Anyone), alpn).map_err(|e| e.to_string())
    }
}

/// Where the parts of a server come from: one for each certificate.
fn origins(spec: &ServerTls) -> Vec<Origin> {
    if spec.mode() == Mode::IstioMutual {
        return Vec::new();
    }
    if spec.secrets.is_empty() {
        let first = Origin {
            certificate: spec.server_certificate.as_str().into(),
            key: spec.private_key.as_str().into(),
            ca: spec.ca_certificates.as_str().into(),
            crl: spec.ca_crl.as_str().into(),
            ca_secret: spec.ca_secret.as_str().into(),
            ..Origin::default()
        };
        let more = spec.more_files.iter().map(|files| Origin {
            certificate: files.certificate.as_str().into(),
            key: files.private_key.as_str().into(),
            ..Origin::default()
        });
        return std::iter::once(first).chain(more).collect();
    }
    let origin = |(i, name): (usize, &String)| Origin {
        secret: name.as_str().into(),
        ca_secret: if i == 0 { spec.ca_secret.as_str().into() } else { Box::default() },
        ..Origin::default()
    };
    spec.secrets.iter().enumerate().map(origin).collect()
}

fn by_spec(spec: &ServerTls, materials: &[Material], alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, String> {
    let mut provider = aws_lc_rs::default_provider();
    if !spec.cipher_suites.is_empty() {
        let wanted = |s: &rustls::SupportedCipherSuite| {
            s.tls13().is_some()
                || spec.cipher_suites.iter().any(|name| openssl_name(s.suite()) == Some(name.as_str()))
        };
        provider.cipher_suites.retain(wanted);
    }
    let provider = Arc::new(provider);
    let mut certificates = Vec::new();
    for m in materials {
        let (chain, key) = m.pair()?.ok_or("there is no certificate")?;
        certificates.push(Named::new(chain, key, &provider)?);
    }
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions(spec))
        .map_err(|e| e.to_string())?;
    let builder = match clients::verifier(spec, materials.first(), &provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName(certificates)));
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    if spec.mode() != Mode::Simple {
        // A resumed session would skip the look at the client's certificate.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Arc::new(config))
}

/// At least TLS 1.2; older ones are not spoken here.
fn versions(spec: &ServerTls) -> Vec<&'static SupportedProtocolVersion> {
    let least = if spec.min_version() == TlsVersion::Tlsv13 { 3 } else { 2 };
    let most = match spec.max_version() {
        TlsVersion::TlsAuto | TlsVersion::Tlsv13 => 3,
        TlsVersion::Tlsv12 | TlsVersion::Tlsv11 | TlsVersion::Tlsv10 => 2,
    };
    let all = [(2, &TLS12), (3, &TLS13)];
    all.into_iter().filter(|(v, _)| *v >= least && *v <= most.max(least)).map(|(_, v)| v).collect()
}

const fn openssl_name(suite: rustls::CipherSuite) -> Option<&'static str> {
    use rustls::CipherSuite as S;
    match suite {
        S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => Some("ECDHE-ECDSA-AES256-GCM-SHA384"),
        S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => Some("ECDHE-ECDSA-AES128-GCM-SHA256"),
        S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => Some("ECDHE-ECDSA-CHACHA20-POLY1305"),
        S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Some("ECDHE-RSA-AES256-GCM-SHA384"),
        S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Some("ECDHE-RSA-AES128-GCM-SHA256"),
        S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Some("ECDHE-RSA-CHACHA20-POLY1305"),
        _ => None,
    }
}

/// A certificate and the names in it.
struct Named {
    names: Vec<String>,
    certified: Arc<CertifiedKey>,
}

impl Named {
    fn new(
        chain: Vec<rustls_pki_types::CertificateDer<'static>>,
        key: rustls_pki_types::PrivateKeyDer<'static>,
        provider: &CryptoProvider,
    ) -> Result<Self, String> {
        let names = chain.first().map(|leaf| dns_names(leaf)).unwrap_or_default();
        let certified = CertifiedKey::from_der(chain, key, provider).map_err(|e| e.to_string())?;
        Ok(Self { names, certified: Arc::new(certified) })
    }
}

fn dns_names(leaf: &[u8]) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    let Ok(Some(listed)) = parsed.subject_alternative_name() else { return Vec::new() };
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(dns) => Some((*dns).to_owned()),
        _ => None,
    };
    listed.value.general_names.iter().filter_map(dns).collect()
}

/// The certificate that fits the name, else any; of several the first whose kind of key the client takes.
struct ByName(Vec<Named>);

impl std::fmt::Debug for ByName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ByName")
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named =
            |c: &&Named| hello.server_name().is_some_and(|name| c.names.iter().any(|n| dns_fits(n, name)));
        let taken = |c: &&Named| c.certified.key.choose_scheme(hello.signature_schemes()).is_some();
        let all = || self.0.iter();
        let found = all().find(|c| named(c) && taken(c)).or_else(|| all().find(named));
        let found = found.or_else(|| all().find(taken)).or_else(|| all().next());
        found.map(|c| Arc::clone(&c.certified))
    }
}
