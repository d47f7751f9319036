//! What controllers share, and the layout of a state directory, which `meshctl` on the same machine uses too.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Authority, AuthorityError, DirShelf, Kept, Lives, Shelf, Step, StoreError, TokenStore, TrustDomain,
    authority::OTHERS,
    files::{DirLock, FileError, private_dir, read_optional, write_private},
    renewal::Others,
};

/// Where the controllers of a mesh keep what they share. Calls block.
pub trait StateStore: Send + Sync {
    /// Loads the CA, or creates it on first use; of several that do so at once, all get the same. What is due by `now`, in
    /// seconds since 1970, is done, by one of them.
    fn authority(
        &self,
        trust_domain: &TrustDomain,
        lives: &Lives,
        now: u64,
    ) -> Result<(Authority, Vec<Step>), AuthorityError>;
    /// The join tokens.
    fn tokens(&self) -> Result<TokenStore, StoreError>;
    /// The node registry.
    fn nodes(&self) -> Result<Arc<dyn Shelf>, StoreError>;
}

impl StateStore for StateDir {
    fn authority(
        &self,
        trust_domain: &TrustDomain,
        lives: &Lives,
        now: u64,
    ) -> Result<(Authority, Vec<Step>), AuthorityError> {
        let dir = self.0.join("ca");
        private_dir(&dir)?;
        let _lock = DirLock::acquire(&dir)?;
        let mut kept = load_or_create(&dir, trust_domain, lives, now)?;
        let mut steps = Vec::new();
        let asked = read_optional(&dir.join(RENEW))?
            .and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse().ok());
        loop {
            let step = match (kept.step(trust_domain, lives, now)?, asked) {
                (None, Some(asked)) => kept.renewed(trust_domain, lives, asked, now)?,
                (step, _) => step,
            };
            let Some((new, step)) = step else { break };
            save(&dir, &kept, &new)?;
            kept = new;
            steps.push(step);
        }
        Ok((Authority::of(&kept, trust_domain, &dir)?, steps))
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

    /// Loads the CA as it is, or creates it on first use. `now` is in seconds since 1970.
    pub fn authority(&self, trust_domain: &TrustDomain, now: u64) -> Result<Authority, AuthorityError> {
        Authority::open(&self.0.join("ca"), trust_domain, now)
    }

    /// Asks the controller on this directory for the next CA now.
    pub fn renew_ca(&self, now: u64) -> Result<(), FileError> {
        let dir = self.0.join("ca");
        private_dir(&dir)?;
        write_private(&dir.join(RENEW), now.to_string().as_bytes())
    }

    /// Opens the token store. Several processes may have it open.
    pub fn tokens(&self) -> Result<TokenStore, FileError> {
        TokenStore::open(&self.0.join("tokens"))
    }
}

const KEY: &str = "ca.key";
const CERTIFICATE: &str = "ca.crt";
/// When somebody asked for the next CA, in seconds since 1970.
const RENEW: &str = "renew";

/// What is in the directory, which is locked.
pub(crate) fn load_or_create(
    dir: &Path,
    trust_domain: &TrustDomain,
    lives: &Lives,
    now: u64,
) -> Result<Kept, AuthorityError> {
    let corrupt = |file: &str, reason: String| AuthorityError::Corrupt { path: dir.join(file), reason };
    let text =
        |file: &str, bytes: Vec<u8>| String::from_utf8(bytes).map_err(|e| corrupt(file, e.to_string()));
    let (key, certificate) = (read_optional(&dir.join(KEY))?, read_optional(&dir.join(CERTIFICATE))?);
    let kept = match (key, certificate) {
        (Some(key), Some(certificate)) => {
            let others = match read_optional(&dir.join(OTHERS))? {
                Some(json) => Others::decode(&json).map_err(|e| corrupt(OTHERS, e.to_string()))?,
                None => Others::default(),
            };
            Kept { key: text(KEY, key)?, certificate: text(CERTIFICATE, certificate)?, others }
        }
        (None, None) => {
            let new = Kept::new(trust_domain, lives, now)?;
            // The key goes first: a certificate alone would be published and useless.
            write_private(&dir.join(KEY), new.key.as_bytes())?;
            write_private(&dir.join(CERTIFICATE), new.certificate.as_bytes())?;
            return Ok(new);
        }
        _ => return Err(AuthorityError::Incomplete(dir.to_owned())),
    };
    let Some(mended) = kept.mended() else { return Ok(kept) };
    write_private(&dir.join(KEY), mended.key.as_bytes())?;
    write_private(&dir.join(OTHERS), &mended.others.encode())?;
    Ok(mended)
}

/// Replaces what is in the directory. A power cut between two files leaves what [`Kept::mended`] knows.
fn save(dir: &Path, old: &Kept, new: &Kept) -> Result<(), FileError> {
    if new.certificate != old.certificate {
        write_private(&dir.join(OTHERS), &new.others_while_it_changes(old).encode())?;
        write_private(&dir.join(CERTIFICATE), new.certificate.as_bytes())?;
        write_private(&dir.join(KEY), new.key.as_bytes())?;
    }
    write_private(&dir.join(OTHERS), &new.others.encode())
}
