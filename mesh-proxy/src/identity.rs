//! Who this node is: the tunnel key, the TLS key, and the certificate that the controller gives for them.
//!
//! A node that has a certificate starts without the controller. One that has none asks for it with its join token, in
//! the background and for as long as it takes; a certificate is renewed when two thirds of its life are over. A pod has its
//! service-account token instead of a join token.

mod config;
mod files;
pub(crate) mod keeper;
pub(crate) mod machine;

use std::path::PathBuf;

use mesh_net::tls::{Credentials, NodeTls, TlsError};
use mesh_tunnel::NodeKey;

pub use config::IdentityConfig;
pub use files::StateFiles;
pub use keeper::Keeper;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of the state directory cannot be read or written.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was attempted.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another state file failed.
    #[error(transparent)]
    Write(#[from] mesh_ca::FileError),
    /// The tunnel key is damaged.
    #[error("{}: {source}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: mesh_tunnel::KeyError,
    },
    /// A key or a certificate request could not be made.
    #[error("make a certificate request: {0}")]
    Request(#[from] rcgen::Error),
    /// The certificate and its key do not fit.
    #[error("use the node certificate: {0}")]
    Tls(#[from] TlsError),
    /// The join token cannot be used.
    #[error("join token: {0}")]
    Token(#[from] mesh_ca::TokenError),
    /// The token is for another node.
    #[error("join token is for node {token}, this is {node}")]
    WrongNode {
        /// In the token.
        token: String,
        /// This one.
        node: String,
    },
    /// Nothing to join with.
    #[error("no certificate and no join token: set join_token (meshctl token create --node NAME)")]
    NoToken,
    /// The certificate ended while this node was away, and it has nothing to join with.
    #[error(
        "the certificate ended {seconds} s ago and there is no join token: on the controller's side \
         `meshctl token create --node NAME`, here set join_token"
    )]
    Expired {
        /// How long ago.
        seconds: u64,
    },
    /// The file of the CA holds none.
    #[error("identity.caFile holds no certificate")]
    NoCa,
    /// Nobody to ask.
    #[error("no controller is configured, and the join token names none")]
    NoController,
    /// The controller did not give a certificate.
    #[error(transparent)]
    Call(#[from] crate::controller::CallError),
    /// The certificate is not for us.
    #[error("the controller's certificate is for {found:?}, not for node {node}")]
    NotOurs {
        /// Name in the certificate.
        found: Option<String>,
        /// This node.
        node: String,
    },
    /// The controller is of another CA than this node has ever heard of.
    #[error(
        "the mesh has another CA than the one that this node has its certificate of: on the controller's side `meshctl \
         token create --node NAME`, here set join_token ({0})"
    )]
    FormerCa(#[source] Box<IdentityError>),
    /// The CA in the answer is not the one that this node was told to trust.
    #[error("the controller's CA is not the one that the join token or identity.caFile names")]
    WrongCa,
}

/// What is on disk at start.
pub struct Identity {
    /// The tunnel's key.
    pub tunnel_key: NodeKey,
    /// TLS, once there is a certificate.
    pub tls: Option<NodeTls>,
    pub(crate) files: StateFiles,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("tunnel_key", &self.tunnel_key)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// As [`Identity::open`]. What belongs to another node name is set aside first: a disk that was copied from that node
    /// must not use its key, and a node that was renamed joins as a new one.
    pub fn open_as(node: &str, files: StateFiles, trust_domain: &str) -> Result<Self, IdentityError> {
        if let Some(other) = files.certified()?.filter(|name| name != node) {
            let kept = files.set_aside(&other)?;
            tracing::warn!(
                node,
                of = other,
                kept = kept.join(", "),
                "the state directory is of another node: its keys are set aside, and this node joins with new ones"
            );
        }
        Self::open(files, trust_domain)
    }

    /// Reads keys and certificate; makes the keys on first start. A damaged certificate is as none: the node asks for
    /// another one.
    pub fn open(files: StateFiles, trust_domain: &str) -> Result<Self, IdentityError> {
        let tunnel_key = files.tunnel_key()?;
        let tls = match files.credentials()? {
            None => None,
            Some(credentials) => usable(trust_domain, credentials),
        };
        Ok(Self { tunnel_key, tls, files })
    }
}

/// Whom to ask: as configured, else as the join token says, else as the token said that this node has joined with.
pub fn controllers(config: &crate::Config, files: &StateFiles) -> Vec<String> {
    let configured = config.controllers();
    if !configured.is_empty() {
        return configured;
    }
    match keeper::token_text(config).and_then(|text| Ok(mesh_ca::JoinToken::parse(&text)?)) {
        Ok(token) if !token.controllers.is_empty() => token.controllers,
        _ => files.controllers(),
    }
}

fn usable(trust_domain: &str, credentials: Credentials) -> Option<NodeTls> {
    match NodeTls::new(trust_domain, credentials) {
        Ok(tls) => Some(tls),
        Err(error) => {
            tracing::error!(%error, "the stored certificate cannot be used: joining again");
            None
        }
    }
}

#[cfg(test)]
mod tests;
