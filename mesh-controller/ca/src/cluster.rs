//! What a mesh's state is called in a cluster, and how a join token looks there: the controller and `meshctl` have to
//! agree on it.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::shelf::Document;

/// The Secret with the CA's key, and the ConfigMap with the certificates of all CAs that are trusted: the one that signs is
/// the first.
pub const CA: &str = "mesh-ca";
/// Key of the certificate in both.
pub const CA_CERTIFICATE: &str = "ca.crt";
/// Key of the private key in the Secret.
pub const CA_KEY: &str = "ca.key";
/// Key of the CAs before and after the one that signs, in the Secret.
pub const CA_OTHERS: &str = "renewal.json";
/// Annotation of the Secret: the next CA is made now, unless there is one since this time, in seconds since 1970.
pub const CA_RENEW: &str = "selvage.dev/renew-ca";
/// What all of it is labelled with.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "mesh-controller");
/// Label of join tokens.
pub const JOIN_TOKEN: (&str, &str) = ("selvage.dev/state", "join-token");
/// The kind of the node registry: group, version, kind, plural.
pub const MESH_NODE: (&str, &str, &str, &str) = ("selvage.dev", "v1alpha1", "MeshNode", "meshnodes");

const PREFIX: &str = "mesh-join-";
const RECORD: &str = "record";

/// The Secret of a join token.
pub fn token_name(id: &str) -> String {
    format!("{PREFIX}{id}")
}

/// The manifest of a join token's record; `version` is the one that it replaces.
pub fn token_secret(namespace: &str, id: &str, record: &[u8], version: Option<&str>) -> Value {
    let mut secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": token_name(id),
            "namespace": namespace,
            "labels": { MANAGED_BY.0: MANAGED_BY.1, JOIN_TOKEN.0: JOIN_TOKEN.1 },
        },
        "data": { RECORD: STANDARD.encode(record) },
    });
    if let Some(version) = version {
        secret["metadata"]["resourceVersion"] = version.into();
    }
    secret
}

/// Id and record of a join token in a Secret; `None` when it is something else.
pub fn token_of(secret: &Value) -> Option<(String, Document)> {
    let text = |pointer: &str| secret.pointer(pointer).and_then(Value::as_str);
    let id = text("/metadata/name")?.strip_prefix(PREFIX)?.to_owned();
    let version = text("/metadata/resourceVersion").unwrap_or_default().to_owned();
    let content = STANDARD.decode(secret.get("data")?.get(RECORD)?.as_str()?).ok()?;
    Some((id, Document { content, version }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_written() {
        let mut secret = token_secret("mesh", "0123456789abcdef", b"{}", Some("7"));
        let read = token_of(&secret).unwrap();
        assert_eq!(
            read,
            ("0123456789abcdef".to_owned(), Document { content: b"{}".to_vec(), version: "7".into() })
        );
        secret["metadata"]["name"] = "other".into();
        assert_eq!(token_of(&secret), None);
    }
}
