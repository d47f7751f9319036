//! Secrets as logs and dumps show them: how much there is, never what.

use std::fmt;

use crate::model::Secret;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: &[u8]| format!("{} bytes", bytes.len());
        f.debug_struct("Secret")
            .field("name", &self.name)
            .field("certificate_chain", &size(&self.certificate_chain))
            .field("private_key", &size(&self.private_key))
            .field("ca", &size(&self.ca))
            .field("crl", &size(&self.crl))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_key() {
        let secret = Secret { name: "a/b".into(), private_key: b"-----BEGIN".to_vec(), ..Secret::default() };
        let text = format!("{secret:?}");
        assert!(text.contains("a/b") && text.contains("10 bytes"), "{text}");
        assert!(!text.contains("BEGIN") && !text.contains("45, 45"), "{text}");
    }
}
