//! Service-account tokens that the API server never made.

use std::path::Path;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};

/// A token with changed claims, signed by the cluster's own key.
pub(crate) fn resigned(token: &str, pki: &Path, change: impl FnOnce(&mut Value)) -> String {
    let key = PrivatePkcs8KeyDer::from_pem_file(pki.join("service-account.key")).unwrap();
    let mut claims = claims(token);
    change(&mut claims);
    signed(&claims, key.secret_pkcs8_der())
}

/// The same claims, signed by a key of our own.
pub(crate) fn forged(token: &str) -> String {
    signed(&claims(token), rcgen::KeyPair::generate().unwrap().serialized_der())
}

/// Changed claims under the signature of the token.
pub(crate) fn altered(token: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut claims = claims(token);
    change(&mut claims);
    let parts: Vec<&str> = token.split('.').collect();
    format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(claims.to_string()), parts[2])
}

fn claims(token: &str) -> Value {
    let body = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).unwrap()).unwrap()
}

fn signed(claims: &Value, pkcs8: &[u8]) -> String {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).unwrap();
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encode(&json!({ "alg": "ES256" })), encode(claims));
    let signature = pair.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}
