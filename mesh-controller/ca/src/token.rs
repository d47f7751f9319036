//! Join tokens: one string that an operator copies to a new node. It proves once, for one node name and a limited
//! time, that the node may join, and lets the node recognise the right CA before it trusts anything.

mod store;

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde::{Deserialize, Serialize};

use crate::spiffe::NodeName;

pub use store::{TokenInfo, TokenStore, UseError};

const PREFIX: &str = "selvage1.";
/// Far above any real token: a node name, 32 bytes of secret, a hash and a few addresses.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// Why a text is not a token. The text itself is never part of the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not our prefix.
    #[error("not a join token: it does not start with {PREFIX:?}")]
    Prefix,
    /// Longer than a token can be.
    #[error("not a join token: {0} bytes long")]
    TooLong(usize),
    /// The part behind the prefix is damaged.
    #[error("join token is damaged (cut off when it was copied?)")]
    Damaged,
}

/// What a node needs in order to join.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Public part: finds the record in the store.
    pub id: String,
    /// The only node that may use it.
    pub node: NodeName,
    /// SHA-256 of the CA certificate (DER): what the node pins.
    pub ca_sha256: [u8; 32],
    /// Seconds since 1970 after which it is refused.
    pub expires: u64,
    /// Where controllers answer (`host:port`); may be empty when the node is configured with them.
    pub controllers: Vec<String>,
    secret: [u8; 32],
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).field("node", &self.node).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "i")]
    id: String,
    #[serde(rename = "n")]
    node: String,
    #[serde(rename = "s")]
    secret: String,
    #[serde(rename = "c")]
    ca_sha256: String,
    #[serde(rename = "e")]
    expires: u64,
    #[serde(rename = "a", default, skip_serializing_if = "Vec::is_empty")]
    controllers: Vec<String>,
}

impl JoinToken {
    /// Reads a token; surrounding white space is ignored.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong(text.len()));
        }
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let json = BASE64.decode(body).map_err(|_| TokenError::Damaged)?;
        let wire: Wire = serde_json::from_slice(&json).map_err(|_| TokenError::Damaged)?;
        if !id_is_plain(&wire.id) {
            return Err(TokenError::Damaged);
        }
        Ok(Self {
            id: wire.id,
            node: NodeName::new(&wire.node).map_err(|_| TokenError::Damaged)?,
            ca_sha256: bytes32(&wire.ca_sha256)?,
            expires: wire.expires,
            controllers: wire.controllers,
            secret: bytes32(&wire.secret)?,
        })
    }

    /// The string to copy. It is a secret: print it once, never log it.
    pub fn encode(&self) -> String {
        let wire = Wire {
            id: self.id.clone(),
            node: self.node.to_string(),
            secret: BASE64.encode(self.secret),
            ca_sha256: BASE64.encode(self.ca_sha256),
            expires: self.expires,
            controllers: self.controllers.clone(),
        };
        // Strings and a number: serialisation has no way to fail.
        format!("{PREFIX}{}", BASE64.encode(serde_json::to_vec(&wire).unwrap_or_default()))
    }
}

fn bytes32(text: &str) -> Result<[u8; 32], TokenError> {
    BASE64.decode(text).ok().and_then(|b| b.try_into().ok()).ok_or(TokenError::Damaged)
}

/// Ids become file names.
fn id_is_plain(id: &str) -> bool {
    id.len() == 16 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests;
