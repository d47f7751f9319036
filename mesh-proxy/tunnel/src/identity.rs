//! The node's tunnel key. It is random, made once, and kept by the caller as protobuf bytes; the peer id is its hash.

use libp2p::identity::{Keypair, PublicKey};
use sha2::{Digest, Sha256};

/// Domain separation: a signature made for joining says nothing anywhere else.
const JOIN_CONTEXT: &[u8] = b"selvage-join-v1:";

/// The same for what is told to routers.
const PORT_CONTEXT: &[u8] = b"selvage-ports-v1:";

/// Why bytes are not a key, or a signature does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a libp2p protobuf key of a kind that we accept (Ed25519).
    #[error("decode tunnel key: {0}")]
    Decode(String),
    /// The key could not sign.
    #[error("sign with the tunnel key: {0}")]
    Sign(String),
    /// The signature is not by that key over that request.
    #[error("the signature does not match the key and the request")]
    Mismatch,
}

/// The key pair of this node's tunnel. Its `Debug` shows the peer id only.
#[derive(Clone)]
pub struct NodeKey(Keypair);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NodeKey").field(&self.peer_id()).finish()
    }
}

impl NodeKey {
    /// A new random Ed25519 key.
    pub fn generate() -> Self {
        Self(Keypair::generate_ed25519())
    }

    /// Reads the form that [`Self::to_protobuf`] writes.
    pub fn from_protobuf(bytes: &[u8]) -> Result<Self, KeyError> {
        Keypair::from_protobuf_encoding(bytes).map(Self).map_err(|e| KeyError::Decode(e.to_string()))
    }

    /// The private form, for the node's state directory.
    pub fn to_protobuf(&self) -> Result<Vec<u8>, KeyError> {
        self.0.to_protobuf_encoding().map_err(|e| KeyError::Decode(e.to_string()))
    }

    /// The public form, for the join request.
    pub fn public_protobuf(&self) -> Vec<u8> {
        self.0.public().encode_protobuf()
    }

    /// Base58 peer id.
    pub fn peer_id(&self) -> String {
        self.0.public().to_peer_id().to_base58()
    }

    /// Proves to the controller that the one who asks for a certificate holds this key.
    pub fn sign_join(&self, csr_der: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign(&join_message(csr_der)).map_err(|e| KeyError::Sign(e.to_string()))
    }

    /// Proves to a router, after a restart too, that a port was opened for this node. Says nothing about the key.
    pub(crate) fn port_secret(&self) -> Result<[u8; 32], KeyError> {
        let mut hash = Sha256::new();
        hash.update(PORT_CONTEXT);
        hash.update(self.to_protobuf()?);
        Ok(hash.finalize().into())
    }

    pub(crate) fn keypair(&self) -> &Keypair {
        &self.0
    }
}

/// Base58 peer id of a public key in protobuf form.
pub fn peer_id_of(public_key_protobuf: &[u8]) -> Result<String, KeyError> {
    decode_public(public_key_protobuf).map(|k| k.to_peer_id().to_base58())
}

/// Checks the signature of a join request; gives the peer id of the key that made it.
pub fn verify_join(public_key_protobuf: &[u8], csr_der: &[u8], signature: &[u8]) -> Result<String, KeyError> {
    let key = decode_public(public_key_protobuf)?;
    if !key.verify(&join_message(csr_der), signature) {
        return Err(KeyError::Mismatch);
    }
    Ok(key.to_peer_id().to_base58())
}

fn decode_public(bytes: &[u8]) -> Result<PublicKey, KeyError> {
    PublicKey::try_decode_protobuf(bytes).map_err(|e| KeyError::Decode(e.to_string()))
}

fn join_message(csr_der: &[u8]) -> Vec<u8> {
    let mut message = JOIN_CONTEXT.to_vec();
    message.extend_from_slice(&Sha256::digest(csr_der));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_the_disk_and_keeps_its_peer_id() {
        let key = NodeKey::generate();
        let again = NodeKey::from_protobuf(&key.to_protobuf().unwrap()).unwrap();
        assert_eq!(again.peer_id(), key.peer_id());
        assert_eq!(peer_id_of(&key.public_protobuf()).unwrap(), key.peer_id());
        assert!(NodeKey::from_protobuf(b"not a key").is_err());
        assert!(peer_id_of(&[]).is_err());
    }

    #[test]
    fn a_join_signature_binds_key_and_request() {
        let key = NodeKey::generate();
        let signature = key.sign_join(b"csr").unwrap();
        assert_eq!(verify_join(&key.public_protobuf(), b"csr", &signature).unwrap(), key.peer_id());
        assert_eq!(verify_join(&key.public_protobuf(), b"other", &signature), Err(KeyError::Mismatch));
        let other = NodeKey::generate();
        assert_eq!(verify_join(&other.public_protobuf(), b"csr", &signature), Err(KeyError::Mismatch));
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        let key = NodeKey::generate();
        assert_eq!(format!("{key:?}"), format!("NodeKey({:?})", key.peer_id()));
    }
}
