//! Relays, reservations and hole punching between tunnels in one process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot set up its world has failed"
)]

#[path = "tunnel/common.rs"]
#[allow(dead_code, reason = "shared with the other tests of the tunnel")]
mod common;
mod nat {
    mod crowd;
    mod mapping;
    mod moves;
    mod node;
    mod relay;
    mod world;
}
