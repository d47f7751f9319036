//! Which join tokens exist and which are spent: one file a token, so that `meshctl token create`, several
//! controllers and a power cut do not disturb each other. Only a hash of the secret is kept.

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{JoinToken, id_is_plain};
use crate::{
    files::{At, DirLock, FileError, private_dir, read_optional, write_private},
    spiffe::NodeName,
};

/// Spent and expired records are kept this long after expiry, so that a replay is called a replay.
const KEEP_AFTER_EXPIRY: u64 = 24 * 3600;
/// A node whose answer got lost may ask again with the very same request for this long.
const RETRY_WINDOW: u64 = 600;

/// Why a token is refused. Each case is distinct, because each has a different remedy.
#[derive(Debug, thiserror::Error)]
pub enum UseError {
    /// No such token, or a wrong secret: the two are not told apart.
    #[error("join token is not known here (made for another mesh, or removed)")]
    Unknown,
    /// Made for another node.
    #[error("join token is for node {expected}, not for {actual}")]
    WrongNode {
        /// The node that the token names.
        expected: String,
        /// The node that came.
        actual: String,
    },
    /// Too late.
    #[error("join token expired {seconds} s ago")]
    Expired {
        /// How long ago.
        seconds: u64,
    },
    /// Used before, by another request.
    #[error("join token was used already; make a new one")]
    Replayed,
    /// The store could not be read or written.
    #[error("join token store")]
    Store(#[from] FileError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    node: String,
    secret_sha256: String,
    created: u64,
    expires: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used: Option<Used>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Used {
    at: u64,
    request_sha256: String,
}

/// What may be shown of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenInfo {
    /// Its id.
    pub id: String,
    /// The node that may use it.
    pub node: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Seconds since 1970.
    pub expires: u64,
    /// When it was used.
    pub used: Option<u64>,
}

/// The tokens of one mesh in a directory. Nothing is cached: every call reads the files.
#[derive(Debug, Clone)]
pub struct TokenStore {
    dir: PathBuf,
}

impl TokenStore {
    /// Opens the store, creating the directory.
    pub fn open(dir: &Path) -> Result<Self, FileError> {
        private_dir(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Makes a token for `node` that holds for `ttl` seconds.
    pub fn create(
        &self,
        node: &NodeName,
        ttl: u64,
        ca_sha256: [u8; 32],
        controllers: Vec<String>,
        now: u64,
    ) -> Result<JoinToken, FileError> {
        let _lock = DirLock::acquire(&self.dir)?;
        self.purge(now);
        let token = JoinToken {
            id: format!("{:016x}", rand::random::<u64>()),
            node: node.clone(),
            ca_sha256,
            expires: now.saturating_add(ttl),
            controllers,
            secret: rand::random(),
        };
        let record = Record {
            node: node.to_string(),
            secret_sha256: hash(&token.secret),
            created: now,
            expires: token.expires,
            used: None,
        };
        self.write(&token.id, &record)?;
        Ok(token)
    }

    /// Whether [`TokenStore::spend`] would accept the token now, without spending it: what it costs to be a stranger.
    pub fn check(
        &self,
        token: &JoinToken,
        node: &NodeName,
        request: &[u8],
        now: u64,
    ) -> Result<(), UseError> {
        self.admit(token, node, request, now).map(drop)
    }

    /// Spends a token. `request` identifies what it is spent on (the certificate request): the same request may
    /// come again for a while, since its answer may have been lost on the way and helps nobody but the key's owner.
    pub fn spend(
        &self,
        token: &JoinToken,
        node: &NodeName,
        request: &[u8],
        now: u64,
    ) -> Result<(), UseError> {
        let _lock = DirLock::acquire(&self.dir)?;
        let Some(mut record) = self.admit(token, node, request, now)? else { return Ok(()) };
        record.used = Some(Used { at: now, request_sha256: hash(request) });
        Ok(self.write(&token.id, &record)?)
    }

    /// The record of a token that may be spent; `None` when it was spent on this very request a moment ago.
    fn admit(
        &self,
        token: &JoinToken,
        node: &NodeName,
        request: &[u8],
        now: u64,
    ) -> Result<Option<Record>, UseError> {
        let record = self.read(&token.id)?.ok_or(UseError::Unknown)?;
        // Comparing hashes: timing tells nothing about the secret.
        if record.secret_sha256 != hash(&token.secret) {
            return Err(UseError::Unknown);
        }
        if record.node != node.as_str() {
            return Err(UseError::WrongNode { expected: record.node, actual: node.to_string() });
        }
        if let Some(used) = &record.used {
            let same = used.request_sha256 == hash(request);
            let retry = same && now < used.at.saturating_add(RETRY_WINDOW);
            return if retry { Ok(None) } else { Err(UseError::Replayed) };
        }
        if now >= record.expires {
            return Err(UseError::Expired { seconds: now - record.expires });
        }
        Ok(Some(record))
    }

    /// All tokens, by time of creation.
    pub fn list(&self) -> Result<Vec<TokenInfo>, FileError> {
        let mut out = Vec::new();
        for id in self.ids()? {
            if let Some(r) = self.read(&id)? {
                let used = r.used.map(|u| u.at);
                out.push(TokenInfo { id, node: r.node, created: r.created, expires: r.expires, used });
            }
        }
        out.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(out)
    }

    /// Removes a token; `false` when there is none of that id.
    pub fn remove(&self, id: &str) -> Result<bool, FileError> {
        let _lock = DirLock::acquire(&self.dir)?;
        let path = self.path(id);
        if !id_is_plain(id) || !path.exists() {
            return Ok(false);
        }
        fs::remove_file(&path).at("remove", &path)?;
        Ok(true)
    }

    fn ids(&self) -> Result<Vec<String>, FileError> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.dir).at("list", &self.dir)? {
            let name = entry.at("list", &self.dir)?.file_name();
            if let Some(id) = name.to_str().and_then(|n| n.strip_suffix(".json"))
                && id_is_plain(id)
            {
                ids.push(id.to_owned());
            }
        }
        Ok(ids)
    }

    /// Drops records that are past any use. A record that cannot be read stays for a person to look at.
    fn purge(&self, now: u64) {
        for id in self.ids().unwrap_or_default() {
            if let Ok(Some(record)) = self.read(&id)
                && now > record.expires.saturating_add(KEEP_AFTER_EXPIRY)
            {
                fs::remove_file(self.path(&id)).ok();
            }
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn read(&self, id: &str) -> Result<Option<Record>, FileError> {
        if !id_is_plain(id) {
            return Ok(None);
        }
        let path = self.path(id);
        let Some(content) = read_optional(&path)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&content).map_err(std::io::Error::other);
        parsed.at("parse", &path).map(Some)
    }

    fn write(&self, id: &str, record: &Record) -> Result<(), FileError> {
        let path = self.path(id);
        let json = serde_json::to_vec_pretty(record).map_err(std::io::Error::other).at("encode", &path)?;
        write_private(&path, &json)
    }
}

fn hash(bytes: &[u8]) -> String {
    BASE64.encode(Sha256::digest(bytes))
}
