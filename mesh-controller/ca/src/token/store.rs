//! Which join tokens exist and which are spent: one document a token, so that `meshctl token create`, several
//! controllers and a power cut do not disturb each other. Only a hash of the secret is kept.

use std::{path::Path, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{JoinToken, id_is_plain};
use crate::{
    files::FileError,
    shelf::{DirShelf, Put, Shelf, StoreError},
    spiffe::NodeName,
};

/// Spent and expired records are kept this long after expiry, so that a replay is called a replay.
const KEEP_AFTER_EXPIRY: u64 = 24 * 3600;
/// A node whose answer got lost may ask again with the very same request for this long.
const RETRY_WINDOW: u64 = 600;
/// Another writer of the same token is met at most once or twice.
const TRIES: usize = 8;

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
    Store(#[from] StoreError),
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

/// The tokens of one mesh on a shelf. Nothing is cached: every call reads the shelf.
#[derive(Debug, Clone)]
pub struct TokenStore {
    shelf: Arc<dyn Shelf>,
}

impl TokenStore {
    /// The tokens in a directory, which is created.
    pub fn open(dir: &Path) -> Result<Self, FileError> {
        Ok(Self::on(Arc::new(DirShelf::open(dir)?)))
    }

    /// The tokens on a shelf.
    pub fn on(shelf: Arc<dyn Shelf>) -> Self {
        Self { shelf }
    }

    /// Makes a token for `node` that holds for `ttl` seconds.
    pub fn create(
        &self,
        node: &NodeName,
        ttl: u64,
        ca_sha256: [u8; 32],
        controllers: Vec<String>,
        now: u64,
    ) -> Result<JoinToken, StoreError> {
        self.purge(now)?;
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
        match self.shelf.put(&token.id, &encode(&token.id, &record)?, None)? {
            Put::Done(_) => Ok(token),
            Put::Conflict => Err(StoreError::new("create", token.id, "there is one of that id")),
        }
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
        for _ in 0..TRIES {
            let Some((mut record, version)) = self.admit(token, node, request, now)? else { return Ok(()) };
            record.used = Some(Used { at: now, request_sha256: hash(request) });
            // Of several that spend it at once, one has seen it unspent; the others look again.
            if let Put::Done(_) = self.shelf.put(&token.id, &encode(&token.id, &record)?, Some(&version))? {
                return Ok(());
            }
        }
        Err(StoreError::new("spend", token.id.as_str(), "it is changed all the time").into())
    }

    /// The record of a token that may be spent; `None` when it was spent on this very request a moment ago.
    fn admit(
        &self,
        token: &JoinToken,
        node: &NodeName,
        request: &[u8],
        now: u64,
    ) -> Result<Option<(Record, String)>, UseError> {
        let (record, version) = self.read(&token.id)?.ok_or(UseError::Unknown)?;
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
        Ok(Some((record, version)))
    }

    /// All tokens, by time of creation. One that cannot be read is left out.
    pub fn list(&self) -> Result<Vec<TokenInfo>, StoreError> {
        let mut out: Vec<_> = self
            .records()?
            .into_iter()
            .map(|(id, r, _)| {
                let used = r.used.map(|u| u.at);
                TokenInfo { id, node: r.node, created: r.created, expires: r.expires, used }
            })
            .collect();
        out.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(out)
    }

    /// Removes a token; `false` when there is none of that id.
    pub fn remove(&self, id: &str) -> Result<bool, StoreError> {
        if id_is_plain(id) { self.shelf.remove(id, None) } else { Ok(false) }
    }

    /// Drops records that are past any use, and says how many. A record that cannot be read stays for a person to look
    /// at.
    pub fn purge(&self, now: u64) -> Result<usize, StoreError> {
        let mut dropped = 0;
        for (id, record, version) in self.records()? {
            if now > record.expires.saturating_add(KEEP_AFTER_EXPIRY) {
                dropped += usize::from(self.shelf.remove(&id, Some(&version))?);
            }
        }
        Ok(dropped)
    }

    fn records(&self) -> Result<Vec<(String, Record, String)>, StoreError> {
        let all = self.shelf.list()?.into_iter().filter(|(id, _)| id_is_plain(id));
        Ok(all
            .filter_map(|(id, d)| Some((id, serde_json::from_slice(&d.content).ok()?, d.version)))
            .collect())
    }

    fn read(&self, id: &str) -> Result<Option<(Record, String)>, StoreError> {
        if !id_is_plain(id) {
            return Ok(None);
        }
        let Some(found) = self.shelf.get(id)? else { return Ok(None) };
        let record = serde_json::from_slice(&found.content).map_err(|e| StoreError::new("parse", id, e))?;
        Ok(Some((record, found.version)))
    }
}

fn encode(id: &str, record: &Record) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec_pretty(record).map_err(|e| StoreError::new("encode", id, e))
}

fn hash(bytes: &[u8]) -> String {
    BASE64.encode(Sha256::digest(bytes))
}
