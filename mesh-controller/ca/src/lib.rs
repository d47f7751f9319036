//! Who may join the mesh and what its certificate says: the certificate authority and the join tokens.
//!
//! - [`Authority`]: the CA of one mesh, kept in a directory; signs node certificates from requests.
//! - [`token`]: one-use, node-bound join tokens, and the store that remembers which are spent.
//! - [`renewal`]: when one CA follows another, and who is trusted meanwhile.
//! - [`shelf`]: small documents that are compared and swapped, in a directory or wherever else; [`cluster`]: what they
//!   are called in a cluster.
//! - [`spiffe`]: the identities that certificates carry.
//! - [`StateStore`]: where controllers find both; [`StateDir`]: in a directory.
//!
//! Time is an argument of every call. Nothing here prints a private key or a token.
#![deny(missing_docs)]

mod authority;
pub mod cluster;
mod files;
pub mod renewal;
pub mod shelf;
pub mod spiffe;
mod state_dir;
pub mod token;

pub use authority::{Authority, AuthorityError, BACKDATE, Issued, NODE_CERT_TTL, SignError};
pub use files::{FileError, write_private};
pub use renewal::{Kept, Lives, Step};
pub use shelf::{DirShelf, Document, Put, Shelf, StoreError};
pub use spiffe::{NodeName, TrustDomain};
pub use state_dir::{StateDir, StateStore};
pub use token::{JoinToken, TokenError, TokenStore, UseError};
