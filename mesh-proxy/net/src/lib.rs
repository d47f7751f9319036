//! Sockets, original destination, detection, TLS and copy: what a connection needs below HTTP.
//!
//! The only crate with `unsafe`: a socket option, and descriptors received from another process.

pub mod connect;
pub mod copy;
pub mod detect;
pub mod handover;
pub mod listen;
pub mod original_dst;
mod prefixed;
pub mod sniff;
pub mod tls;

pub use prefixed::Prefixed;
