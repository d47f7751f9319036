//! Key and certificate files, mode 0600, each replaced as a whole.

use std::{
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_net::tls::Credentials;
use mesh_tunnel::NodeKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};

use super::IdentityError;

/// CAs of a mesh that are looked at; one follows another in years.
pub(crate) const MAX_CAS: usize = 4;

/// The files of a state directory.
#[derive(Debug, Clone)]
pub struct StateFiles {
    dir: PathBuf,
}

/// A TLS key with the request for its certificate. Kept until the certificate is there: a token that was spent on it
/// may be shown again with the same request, in case the answer got lost.
pub(crate) struct Request {
    pub(crate) key: rcgen::KeyPair,
    pub(crate) csr: Vec<u8>,
}

impl StateFiles {
    /// The files of `dir`, which is created.
    pub fn open(dir: &Path) -> Result<Self, IdentityError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| {
            IdentityError::File { operation: "create directory", path: dir.to_owned(), source }
        })?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, IdentityError> {
        let path = self.dir.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::File { operation: "read", path, source }),
        }
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), IdentityError> {
        Ok(mesh_ca::write_private(&self.dir.join(name), content)?)
    }

    /// The tunnel's key, made on first use. A damaged one is an error: a new one would be another peer.
    pub(crate) fn tunnel_key(&self) -> Result<NodeKey, IdentityError> {
        let at = |source| IdentityError::Key { path: self.dir.join("tunnel.key"), source };
        if let Some(bytes) = self.read("tunnel.key")? {
            return NodeKey::from_protobuf(&bytes).map_err(at);
        }
        let key = NodeKey::generate();
        self.write("tunnel.key", &key.to_protobuf().map_err(at)?)?;
        Ok(key)
    }

    /// The node that the certificate here names.
    pub(crate) fn certified(&self) -> Result<Option<String>, IdentityError> {
        let Some(credentials) = self.credentials()? else { return Ok(None) };
        let named = credentials.chain.first().and_then(|leaf| mesh_net::tls::identity_of(leaf).ok());
        Ok(named.and_then(|id| id.node().map(str::to_owned)))
    }

    /// Puts keys and certificate of another node out of use; gives the names under which they are kept.
    pub(crate) fn set_aside(&self, of: &str) -> Result<Vec<String>, IdentityError> {
        let mut kept = Vec::new();
        // The certificate goes last: while it is there, this is done again.
        for name in ["request.pem", "tunnel.key", "identity.pem"] {
            let (path, new) = (self.dir.join(name), format!("{name}.of-{of}"));
            match std::fs::rename(&path, self.dir.join(&new)) {
                Ok(()) => kept.push(new),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(source) => return Err(IdentityError::File { operation: "set aside", path, source }),
            }
        }
        Ok(kept)
    }

    /// Key, certificate and CAs, which are one file so that they always fit.
    pub(crate) fn credentials(&self) -> Result<Option<Credentials>, IdentityError> {
        let Some(pem) = self.read("identity.pem")? else { return Ok(None) };
        let key = PrivateKeyDer::from_pem_slice(&pem);
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        match (key, certificates.as_deref()) {
            (Ok(key), Ok([leaf, roots @ ..])) if (1..=MAX_CAS).contains(&roots.len()) => {
                Ok(Some(Credentials { chain: vec![leaf.clone()], key, roots: roots.to_vec() }))
            }
            _ => {
                tracing::error!(path = %self.dir.join("identity.pem").display(), "damaged: joining again");
                Ok(None)
            }
        }
    }

    pub(crate) fn save_credentials(
        &self,
        key: &[u8],
        leaf: &[u8],
        roots: &[CertificateDer<'_>],
    ) -> Result<(), IdentityError> {
        let mut text = pem("PRIVATE KEY", key);
        text += &pem("CERTIFICATE", leaf);
        for ca in roots {
            text += &pem("CERTIFICATE", ca);
        }
        self.write("identity.pem", text.as_bytes())?;
        // A request is for one certificate.
        std::fs::remove_file(self.dir.join("request.pem")).ok();
        Ok(())
    }

    /// Where controllers answered when this node joined.
    pub(crate) fn controllers(&self) -> Vec<String> {
        let saved = self.read("controllers").ok().flatten().unwrap_or_default();
        String::from_utf8_lossy(&saved).lines().map(str::to_owned).collect()
    }

    pub(crate) fn save_controllers(&self, addresses: &[String]) -> Result<(), IdentityError> {
        self.write("controllers", addresses.join("\n").as_bytes())
    }

    /// The request that was begun, or a new one with a new key.
    pub(crate) fn request(&self) -> Result<Request, IdentityError> {
        if let Some(found) = self.read("request.pem")?.and_then(|pem| parse_request(&pem)) {
            return Ok(found);
        }
        let key = rcgen::KeyPair::generate()?;
        let params = rcgen::CertificateParams::default();
        let csr = params.serialize_request(&key)?.der().to_vec();
        let text = pem("PRIVATE KEY", key.serialized_der()) + &pem("CERTIFICATE REQUEST", &csr);
        self.write("request.pem", text.as_bytes())?;
        Ok(Request { key, csr })
    }
}

fn parse_request(pem: &[u8]) -> Option<Request> {
    let key = PrivatePkcs8KeyDer::from_pem_slice(pem).ok()?;
    let csr = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(pem).ok()?;
    Some(Request { key: rcgen::KeyPair::try_from(&key).ok()?, csr: csr.to_vec() })
}

fn pem(label: &str, der: &[u8]) -> String {
    let mut out = format!("-----BEGIN {label}-----\n");
    let text = STANDARD.encode(der);
    for line in text.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).unwrap_or_default());
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}
