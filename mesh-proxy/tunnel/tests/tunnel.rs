//! Tunnels on loopback, two or three in one process. One binary: linking libp2p once is enough.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "tunnel/bounds.rs"]
mod bounds;
#[path = "tunnel/common.rs"]
mod common;
#[path = "tunnel/early.rs"]
mod early;
#[path = "tunnel/link.rs"]
mod link;
#[path = "tunnel/load.rs"]
mod load;
#[path = "tunnel/paths.rs"]
mod paths;
#[path = "tunnel/relayed.rs"]
mod relayed;
#[path = "tunnel/streams.rs"]
mod streams;
#[path = "tunnel/workers.rs"]
mod workers;
