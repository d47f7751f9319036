//! Sockets, original destination, detection, TLS and copy: what a connection needs below HTTP.
//!
//! The only crate with `unsafe`: where no safe interface exists for a descriptor or a socket option.

pub mod connect;
pub mod copy;
pub mod detect;
pub mod handover;
pub mod listen;
pub mod memory;
pub mod nfwatch;
pub mod original_dst;
mod prefixed;
pub mod rulewatch;
pub mod sniff;
pub mod tcp;
pub mod tls;
pub mod udp;

pub use prefixed::Prefixed;
