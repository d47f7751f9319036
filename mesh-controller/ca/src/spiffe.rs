//! The identities in certificates: `spiffe://<trust domain>/node/<name>` for a node and
//! `spiffe://<trust domain>/controller` for a controller. A client that talks to the controller checks for the
//! latter: a node certificate is valid for servers too and must not pass for one.

use std::fmt;

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a lower-case DNS name.
    #[error("{what} {value:?} is not a lower-case DNS name of at most 253 characters")]
    NotDns {
        /// What was being named.
        what: &'static str,
        /// The offending text, cut to 64 characters.
        value: String,
    },
}

fn dns_name(what: &'static str, value: &str) -> Result<Box<str>, NameError> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let label = |l: &str| {
        let b = l.as_bytes();
        !b.is_empty()
            && b.len() <= 63
            && b.iter().all(|c| inner(*c))
            && b[0] != b'-'
            && b[b.len() - 1] != b'-'
    };
    if value.len() <= 253 && value.split('.').all(label) {
        Ok(value.into())
    } else {
        Err(NameError::NotDns { what, value: value.chars().take(64).collect() })
    }
}

macro_rules! dns_newtype {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// Accepts a lower-case DNS name: what Kubernetes accepts, and safe as a file name.
            pub fn new(value: &str) -> Result<Self, NameError> {
                dns_name($what, value).map(Self)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

dns_newtype!(
    /// The name of a node, as Kubernetes and the registry know it.
    NodeName,
    "node"
);
dns_newtype!(
    /// The trust domain of a mesh: the authority part of its SPIFFE identities.
    TrustDomain,
    "trust domain"
);

impl TrustDomain {
    /// The identity of a node.
    pub fn node_id(&self, node: &NodeName) -> String {
        format!("spiffe://{self}/node/{node}")
    }

    /// The identity of a controller.
    pub fn controller_id(&self) -> String {
        format!("spiffe://{self}/controller")
    }

    /// The node that `uri` names, if it is a node identity of this trust domain.
    pub fn node_of(&self, uri: &str) -> Option<NodeName> {
        let rest = uri.strip_prefix("spiffe://")?.strip_prefix(self.as_str())?;
        NodeName::new(rest.strip_prefix("/node/")?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_names() {
        for good in ["edge-a", "a", "n1.site-2.example"] {
            assert!(NodeName::new(good).is_ok(), "{good}");
        }
        let long = "a".repeat(254);
        for bad in ["", "Edge", "a/b", "..", "a..b", "-a", "a-", "a b", "a\n", "ü", &long] {
            assert!(NodeName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_node_identities_of_the_own_domain_name_a_node() {
        let td = TrustDomain::new("cluster.local").unwrap();
        let n = NodeName::new("edge-a").unwrap();
        assert_eq!(td.node_of(&td.node_id(&n)), Some(n));
        assert_eq!(td.node_of(&td.controller_id()), None);
        for bad in [
            "spiffe://other/node/edge-a",
            "spiffe://cluster.local.evil/node/edge-a",
            "spiffe://cluster.local/ns/default/sa/edge-a",
            "spiffe://cluster.local/node/",
            "spiffe://cluster.local/node/a/b",
            "http://cluster.local/node/edge-a",
        ] {
            assert_eq!(td.node_of(bad), None, "{bad}");
        }
    }
}
