//! Keys and certificates from files of the node or from Secret resources, and when they are to be read again.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use mesh_api::model::Secret;
use mesh_core::Tables;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject};

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Where the parts come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) certificate: Box<str>,
    pub(crate) key: Box<str>,
    pub(crate) ca: Box<str>,
    pub(crate) crl: Box<str>,
    /// Instead of files.
    pub(crate) secret: Box<str>,
    /// For the authorities, beside `secret`.
    pub(crate) ca_secret: Box<str>,
    /// For the certificate and its key, beside `secret`.
    pub(crate) pair_secret: Box<str>,
}

/// PEM texts.
#[derive(Clone, Default)]
pub(crate) struct Material {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) ca: Vec<u8>,
    pub(crate) crl: Vec<u8>,
}

/// What tells whether a material is still right.
#[derive(Debug)]
pub(crate) struct Seen {
    secrets: Secrets,
    files: Vec<(Box<str>, Option<SystemTime>)>,
    looked: Instant,
}

/// Those that an origin names, in the order of its fields.
type Secrets = [Option<Arc<Secret>>; 3];

impl Origin {
    fn files(&self) -> impl Iterator<Item = &Box<str>> {
        [&self.certificate, &self.key, &self.ca, &self.crl].into_iter().filter(|f| !f.is_empty())
    }

    fn secrets(&self, tables: &Tables) -> Secrets {
        [&self.secret, &self.ca_secret, &self.pair_secret].map(|name| tables.secret(name).cloned())
    }

    /// Reads everything. Files are small and read only when a connection needs them and they have changed.
    pub(crate) fn read(&self, tables: &Tables) -> Result<(Material, Seen), String> {
        let secrets = self.secrets(tables);
        let mut m = Material::default();
        for (name, part) in [
            (&self.certificate, &mut m.certificate),
            (&self.key, &mut m.key),
            (&self.ca, &mut m.ca),
            (&self.crl, &mut m.crl),
        ] {
            if !name.is_empty() {
                *part = file(name)?;
            }
        }
        if !self.secret.is_empty() {
            let Some(s) = &secrets[0] else { return Err(format!("secret {} is not there", self.secret)) };
            m.certificate.clone_from(&s.certificate_chain);
            m.key.clone_from(&s.private_key);
            m.ca.clone_from(&s.ca);
            m.crl.clone_from(&s.crl);
        }
        if !self.ca_secret.is_empty() {
            let Some(s) = &secrets[1] else { return Err(format!("secret {} is not there", self.ca_secret)) };
            m.ca.clone_from(&s.ca);
            if !s.crl.is_empty() {
                m.crl.clone_from(&s.crl);
            }
        }
        if !self.pair_secret.is_empty() {
            let Some(s) = &secrets[2] else {
                return Err(format!("secret {} is not there", self.pair_secret));
            };
            m.certificate.clone_from(&s.certificate_chain);
            m.key.clone_from(&s.private_key);
        }
        let files = self.files().map(|f| (f.clone(), changed(f))).collect();
        Ok((m, Seen { secrets, files, looked: Instant::now() }))
    }
}

impl Seen {
    /// Whether nothing has changed, as far as is known.
    pub(crate) fn holds(&mut self, origin: &Origin, tables: &Tables) -> bool {
        let same = |a: &Option<Arc<Secret>>, b: &Option<Arc<Secret>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
            (None, None) => true,
            _ => false,
        };
        let now = origin.secrets(tables);
        if !now.iter().zip(&self.secrets).all(|(now, then)| same(now, then)) {
            return false;
        }
        if self.looked.elapsed() < LOOK_EVERY {
            return true;
        }
        self.looked = Instant::now();
        self.files.iter().all(|(f, at)| changed(f) == *at)
    }
}

fn changed(file: &str) -> Option<SystemTime> {
    std::fs::metadata(Path::new(file)).and_then(|m| m.modified()).ok()
}

fn file(name: &str) -> Result<Vec<u8>, String> {
    let problem = |e: std::io::Error| format!("{name}: {e}");
    if std::fs::metadata(name).map_err(problem)?.len() > MAX_FILE {
        return Err(format!("{name} is larger than {MAX_FILE} bytes"));
    }
    std::fs::read(name).map_err(problem)
}

impl Material {
    /// Chain and key; none if there is no certificate.
    #[allow(clippy::type_complexity, reason = "chain and key, nothing else")]
    pub(crate) fn pair(
        &self,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, String> {
        if self.certificate.is_empty() {
            return Ok(None);
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|e| format!("private key: {e}"))?;
        Ok(Some((certificates(&self.certificate)?, key)))
    }

    /// The authorities; none = nothing is said.
    pub(crate) fn roots(&self) -> Result<Option<rustls::RootCertStore>, String> {
        if self.ca.is_empty() {
            return Ok(None);
        }
        let mut roots = rustls::RootCertStore::empty();
        for c in certificates(&self.ca)? {
            roots.add(c).map_err(|e| format!("authority: {e}"))?;
        }
        Ok(Some(roots))
    }

    /// Lists of revoked certificates.
    pub(crate) fn crls(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
        let all: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&self.crl).collect();
        all.map_err(|e| format!("revocation list: {e}"))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err("no certificate".to_owned()),
        Err(e) => Err(format!("certificate: {e}")),
    }
}

/// The authorities that the system trusts.
pub(crate) fn system_roots() -> Result<rustls::RootCertStore, String> {
    const FILES: [&str; 3] =
        ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    let named = std::env::var("SSL_CERT_FILE").ok();
    let path = named.as_deref().or_else(|| FILES.into_iter().find(|f| Path::new(f).exists()));
    let Some(path) = path else { return Err("the system has no list of authorities".to_owned()) };
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&file(path)?)?);
    Ok(roots)
}
