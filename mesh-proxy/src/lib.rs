//! The edge mesh data plane: DNS, capture, L4 and L7 routing, tunnel.

pub mod config;
pub mod shared;
