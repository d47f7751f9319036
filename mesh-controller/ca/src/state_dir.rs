//! The layout of a controller's state directory, shared with `meshctl` on the same machine.

use std::path::{Path, PathBuf};

use crate::{Authority, AuthorityError, TokenStore, TrustDomain, files::FileError};

/// A controller's state directory: `ca/`, `tokens/`, `nodes/`.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Names the directory; nothing is touched yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where node records are kept, one file a node.
    pub fn nodes(&self) -> PathBuf {
        self.0.join("nodes")
    }

    /// Loads the CA, or creates it on first use. `now` is in seconds since 1970.
    pub fn authority(&self, trust_domain: &TrustDomain, now: u64) -> Result<Authority, AuthorityError> {
        Authority::open(&self.0.join("ca"), trust_domain, now)
    }

    /// Opens the token store. Several processes may have it open.
    pub fn tokens(&self) -> Result<TokenStore, FileError> {
        TokenStore::open(&self.0.join("tokens"))
    }
}
