//! Who may join the mesh and what its certificate says: the certificate authority and the join tokens.
//!
//! - [`Authority`]: the CA of one mesh, kept in a directory; signs node certificates from requests.
//! - [`token`]: one-use, node-bound join tokens, and the file store that remembers which are spent.
//! - [`spiffe`]: the identities that certificates carry.
//! - [`StateDir`]: where a controller and `meshctl` on the same machine find both.
//!
//! Time is an argument of every call. Nothing here prints a private key or a token.
#![deny(missing_docs)]

mod authority;
mod files;
pub mod spiffe;
mod state_dir;
pub mod token;

pub use authority::{Authority, AuthorityError, Issued, NODE_CERT_TTL, SignError};
pub use files::{FileError, write_private};
pub use spiffe::{NodeName, TrustDomain};
pub use state_dir::StateDir;
pub use token::{JoinToken, TokenError, TokenStore, UseError};
