//! libp2p peer ids of Ed25519 keys, without libp2p: base58 of an identity multihash over the key's protobuf form. A
//! joining node proves that it holds the key by signing its certificate request.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use sha2::{Digest, Sha256};

/// Key type Ed25519, then 32 bytes of key: what the protobuf form of every Ed25519 key starts with.
const PROTOBUF_PREFIX: [u8; 4] = [0x08, 0x01, 0x12, 0x20];
const CONTEXT: &[u8] = b"selvage-join-v1:";
const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// Why a peer key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerKeyError {
    /// Not the protobuf form of an Ed25519 key.
    #[error("peer key is not an Ed25519 key in libp2p's protobuf form")]
    Key,
    /// The signature is not by that key or not over this request.
    #[error("peer signature does not match the peer key and the certificate request")]
    Signature,
}

/// What a joining node signs.
pub fn signed_message(csr_der: &[u8]) -> Vec<u8> {
    let mut message = CONTEXT.to_vec();
    message.extend_from_slice(&Sha256::digest(csr_der));
    message
}

/// The peer id of a key that has signed this certificate request.
pub fn verify(public_key: &[u8], signature: &[u8], csr_der: &[u8]) -> Result<String, PeerKeyError> {
    let raw =
        public_key.strip_prefix(&PROTOBUF_PREFIX).filter(|raw| raw.len() == 32).ok_or(PeerKeyError::Key)?;
    UnparsedPublicKey::new(&ED25519, raw)
        .verify(&signed_message(csr_der), signature)
        .map_err(|_| PeerKeyError::Signature)?;
    Ok(of_key(public_key))
}

fn of_key(protobuf: &[u8]) -> String {
    // Multihash: code 0 (identity), length, content.
    let mut hash = vec![0x00, 0x24];
    hash.extend_from_slice(protobuf);
    base58(&hash)
}

fn base58(bytes: &[u8]) -> String {
    let mut digits: Vec<u8> = Vec::with_capacity(bytes.len() * 138 / 100 + 1);
    for byte in bytes {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            carry += u32::from(*digit) << 8;
            *digit = (carry % 58) as u8;
            carry /= 58;
        }
        while carry > 0 {
            digits.push((carry % 58) as u8);
            carry /= 58;
        }
    }
    let zeros = bytes.iter().take_while(|b| **b == 0).count();
    let text = std::iter::repeat_n(0, zeros).chain(digits.into_iter().rev());
    text.map(|d| char::from(ALPHABET[usize::from(d)])).collect()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    use super::*;

    #[test]
    fn base58_as_bitcoin_writes_it() {
        assert_eq!(base58(b""), "");
        assert_eq!(base58(b"Hello World!"), "2NEpo7TZRRrLZSi2U");
        assert_eq!(base58(&[0, 0, 0x28, 0x7f, 0xb4, 0xcd]), "11233QC4");
    }

    #[test]
    fn peer_ids_as_libp2p_writes_them() {
        // From the peer id specification's test vectors (Ed25519).
        let key = "080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e";
        let bytes: Vec<u8> =
            (0..key.len() / 2).map(|i| u8::from_str_radix(&key[2 * i..2 * i + 2], 16).unwrap()).collect();
        assert!(of_key(&bytes).starts_with("12D3KooW"));
        assert_eq!(of_key(&bytes).len(), 52);
    }

    #[test]
    fn only_the_holder_of_the_key_gets_its_peer_id() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let public = [&PROTOBUF_PREFIX, pair.public_key().as_ref()].concat();
        let signature = pair.sign(&signed_message(b"csr"));
        assert!(verify(&public, signature.as_ref(), b"csr").unwrap().starts_with("12D3KooW"));
        assert_eq!(verify(&public, signature.as_ref(), b"other"), Err(PeerKeyError::Signature));
        assert_eq!(verify(&public, b"", b"csr"), Err(PeerKeyError::Signature));
        assert_eq!(verify(&public[1..], signature.as_ref(), b"csr"), Err(PeerKeyError::Key));
        assert_eq!(verify(&public[..35], signature.as_ref(), b"csr"), Err(PeerKeyError::Key));
        let other = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap();
        let other = [&PROTOBUF_PREFIX, other.public_key().as_ref()].concat();
        assert_eq!(verify(&other, signature.as_ref(), b"csr"), Err(PeerKeyError::Signature));
    }
}
