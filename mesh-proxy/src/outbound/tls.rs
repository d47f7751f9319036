//! TLS towards endpoints, as DestinationRules order it. Configurations are made when a connection needs them, kept,
//! and made anew when their files or secrets change: connections that are open stay.

pub(crate) mod material;
pub(crate) mod verify;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use mesh_core::{
    Tables,
    policy::{ClientTls, ClientTlsMode},
};
use mesh_net::tls::{Expect, NodeTls};
use rustls::{ClientConfig, client::Resumption, client::WebPkiServerVerifier, crypto::aws_lc_rs};
use rustls_pki_types::ServerName;
use tokio::sync::watch;

use material::{Material, Origin, Seen, system_roots};
use verify::ByRule;

/// Most configurations that are kept; when there are more, all are made anew.
const MAX: usize = 512;
/// Sessions that one configuration remembers.
const SESSIONS: usize = 64;

/// Protocols that a handshake offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum Alpn {
    /// None: bytes.
    #[default]
    Nothing,
    /// HTTP/1.1
    Http1,
    /// HTTP/2
    H2,
}

/// The node's own identity in the mesh, once it has one.
pub type Identity = watch::Receiver<Option<NodeTls>>;

/// Configurations of all workers. Locked only while a connection is made.
#[derive(Default)]
pub struct TlsConfigs {
    clients: Mutex<HashMap<Wanted, Kept>>,
    identity: Option<Identity>,
}

#[derive(PartialEq, Eq, Hash)]
struct Wanted {
    policy: Arc<ClientTls>,
    names: Arc<[Box<str>]>,
    alpn: Alpn,
    /// Secret with the certificate that a gateway shows; empty = none.
    own: Box<str>,
}

struct Kept {
    config: Arc<ClientConfig>,
    seen: Seen,
}

impl std::fmt::Debug for TlsConfigs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsConfigs")
    }
}

impl TlsConfigs {
    /// With the node's own identity, for `ISTIO_MUTUAL`.
    pub fn new(identity: Option<Identity>) -> Self {
        Self { identity, ..Self::default() }
    }

    /// The configuration for a connection. `names`: what the service's own entry asks of the server. `own`: the secret
    /// with the certificate that a gateway shows where the rule has none of its own.
    pub(crate) fn client(
        &self,
        tables: &Tables,
        policy: &Arc<ClientTls>,
        names: &Arc<[Box<str>]>,
        (alpn, own): (Alpn, &str),
    ) -> Result<Arc<ClientConfig>, String> {
        let own: Box<str> = if policy.mode == ClientTlsMode::Simple { own.into() } else { Box::default() };
        let origin = origin(policy, &own);
        let wanted = Wanted { policy: Arc::clone(policy), names: Arc::clone(names), alpn, own };
        let mut kept = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(k) = kept.get_mut(&wanted)
            && k.seen.holds(&origin, tables)
        {
            return Ok(Arc::clone(&k.config));
        }
        let (material, seen) = origin.read(tables)?;
        let config = match policy.mode {
            ClientTlsMode::IstioMutual => self.mesh_config(alpn)?,
            _ => by_rule(&wanted, &material)?,
        };
        if kept.len() >= MAX {
            kept.clear();
        }
        kept.insert(wanted, Kept { config: Arc::clone(&config), seen });
        Ok(config)
    }

    fn mesh_config(&self, alpn: Alpn) -> Result<Arc<ClientConfig>, String> {
        let identity = self.identity.as_ref().and_then(|i| i.borrow().clone());
        let identity = identity.ok_or("this node has no certificate of the mesh")?;
        identity.client_config(Expect::Anyone, protocols(alpn)).map_err(|e| e.to_string())
    }
}

const fn protocols(alpn: Alpn) -> &'static [&'static [u8]] {
    match alpn {
        Alpn::Nothing => &[],
        Alpn::Http1 => &[b"http/1.1"],
        Alpn::H2 => &[b"h2"],
    }
}

fn origin(policy: &ClientTls, pair: &str) -> Origin {
    let mutual = policy.mode == ClientTlsMode::Mutual;
    let own = |file: &str| if mutual { file } else { "" }.into();
    if policy.mode == ClientTlsMode::IstioMutual {
        return Origin::default();
    }
    Origin {
        certificate: own(&policy.certificate),
        key: own(&policy.private_key),
        ca: policy.ca.clone(),
        crl: policy.crl.clone(),
        secret: policy.secret.clone(),
        ca_secret: Box::default(),
        pair_secret: pair.into(),
    }
}

fn by_rule(wanted: &Wanted, material: &Material) -> Result<Arc<ClientConfig>, String> {
    let policy = &wanted.policy;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = match policy.skip_verify {
        true => None,
        false => {
            let roots = match material.roots()? {
                Some(roots) => roots,
                None => system_roots()?,
            };
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .with_crls(material.crls()?)
                .allow_unknown_revocation_status();
            Some(builder.build().map_err(|e| e.to_string())?)
        }
    };
    let names = match policy.subject_alt_names.is_empty() {
        true => wanted.names.iter().cloned().collect(),
        false => policy.subject_alt_names.clone(),
    };
    let verifier = ByRule { provider: Arc::clone(&provider), chain, names };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let shows = policy.mode == ClientTlsMode::Mutual || !wanted.own.is_empty();
    let own = if shows { material.pair()? } else { None };
    let mut config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())?,
        None if shows => return Err("there is no certificate".to_owned()),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    config.alpn_protocols = protocols(wanted.alpn).iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// The name for the handshake: the rule's, the request's host, or the endpoint's address.
pub(crate) fn server_name(policy: &ClientTls, host: &str, addr: IpAddr) -> ServerName<'static> {
    let named = if policy.sni.is_empty() { without_port(host) } else { &policy.sni };
    match ServerName::try_from(named.to_owned()) {
        Ok(name) => name,
        Err(_) => ServerName::IpAddress(addr.into()),
    }
}

/// A number that differs when connections must not be shared: by the name in their handshake, and by what is shown.
pub(crate) fn name_of(policy: &ClientTls, host: &str, own: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let named = if policy.sni.is_empty() { without_port(host) } else { &policy.sni };
    (named, own).hash(&mut hasher);
    hasher.finish() | 1
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority.trim_start_matches('[').split(']').next().unwrap_or(authority),
    }
}
