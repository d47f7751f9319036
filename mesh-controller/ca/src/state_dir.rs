//! What controllers share, and the layout of a state directory, which `meshctl` on the same machine uses too.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Authority, AuthorityError, DirShelf, Shelf, StoreError, TokenStore, TrustDomain, files::FileError,
};

/// Where the controllers of a mesh keep what they share. Calls block.
pub trait StateStore: Send + Sync {
    /// Loads the CA, or creates it on first use; of several that do so at once, all get the same. `now` is in seconds
    /// since 1970.
    fn authority(&self, trust_domain: &TrustDomain, now: u64) -> Result<Authority, AuthorityError>;
    /// The join tokens.
    fn tokens(&self) -> Result<TokenStore, StoreError>;
    /// The node registry.
    fn nodes(&self) -> Result<Arc<dyn Shelf>, StoreError>;
}

impl StateStore for StateDir {
    fn authority(&self, trust_domain: &TrustDomain, now: u64) -> Result<Authority, AuthorityError> {
        Self::authority(self, trust_domain, now)
    }

    fn tokens(&self) -> Result<TokenStore, StoreError> {
        Ok(Self::tokens(self)?)
    }

    fn nodes(&self) -> Result<Arc<dyn Shelf>, StoreError> {
        Ok(Arc::new(DirShelf::open(&Self::nodes(self))?))
    }
}

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
